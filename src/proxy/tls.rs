//! TLS: towards clients, with certificates from files and client certificates if asked for; and
//! towards a server behind the proxy, where Ray stands behind one that speaks it.
//!
//! Ray's own ports speak no TLS; the proxy ends it. The files are read when a listener opens and
//! again when they have changed; a connection keeps the certificate it began with, and files that
//! cannot be used leave the certificate that works in force.

use crate::protocol::Protocol;
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ServerConfig};
use sha2::{Digest as _, Sha256};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// Why TLS cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or holds no PEM of its kind.
    #[error("{path}: {source}; give a PEM file with a {wanted}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        wanted: &'static str,
        /// What is wrong.
        source: rustls::pki_types::pem::Error,
    },
    /// The file is empty of what it should hold.
    #[error("{path} holds no {wanted}", path = path.display())]
    Empty {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        wanted: &'static str,
    },
    /// Certificate and key do not go together, or are of no use.
    #[error("certificate {path}: {source}", path = path.display())]
    Unusable {
        /// The certificate's file.
        path: PathBuf,
        /// What is wrong.
        source: rustls::Error,
    },
    /// The authorities are of no use.
    #[error("authorities {path}: {problem}", path = path.display())]
    Authorities {
        /// Their file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

/// What TLS has in files, that others may exchange at any time.
pub trait Renew: Send + Sync {
    /// The file that names it to people.
    fn file(&self) -> &Path;

    /// Reads the files again if their content has changed since they were last looked at, and
    /// says whether it had. Files that are exchanged one after the other may fail to go together
    /// for a moment: what was in force stays so until they do.
    ///
    /// # Errors
    /// [`TlsError`], once for each content.
    fn renew(&self) -> Result<bool, TlsError>;
}

/// Whether what stands in the files is news; it is none the next time.
fn has_changed(looked_at: &Mutex<Digest>, now: Digest) -> bool {
    let mut looked_at = looked_at.lock();
    std::mem::replace(&mut *looked_at, now) != now
}

/// Ends TLS with the certificate in force.
#[derive(Debug)]
pub struct Terminator {
    certificate: PathBuf,
    key: PathBuf,
    client_authorities: Option<PathBuf>,
    config: ArcSwap<ServerConfig>,
    /// What stood in the files when they were last looked at, right or wrong.
    looked_at: Mutex<Digest>,
}

type Digest = [u8; 32];

impl Terminator {
    /// Reads the files. With `client_authorities`, only clients with a certificate of theirs
    /// are let in.
    pub fn new(
        certificate: &Path,
        key: &Path,
        client_authorities: Option<&Path>,
    ) -> Result<Terminator, TlsError> {
        let looked_at = Mutex::new(digest([Some(certificate), Some(key), client_authorities]));
        let config = read(certificate, key, client_authorities)?;
        Ok(Terminator {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            client_authorities: client_authorities.map(Path::to_owned),
            config: ArcSwap::from(config),
            looked_at,
        })
    }

    /// Reads the files again; new connections use what they hold.
    ///
    /// # Errors
    /// [`TlsError`]: what was in force stays so.
    pub fn reload(&self) -> Result<(), TlsError> {
        self.config.store(read(&self.certificate, &self.key, self.client_authorities.as_deref())?);
        Ok(())
    }

    /// For one connection.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.config.load_full())
    }
}

impl Renew for Terminator {
    fn file(&self) -> &Path {
        &self.certificate
    }

    fn renew(&self) -> Result<bool, TlsError> {
        let files = [Some(&*self.certificate), Some(&*self.key), self.client_authorities.as_deref()];
        if !has_changed(&self.looked_at, digest(files)) {
            return Ok(false);
        }
        self.reload().map(|()| true)
    }
}

/// Begins TLS with the server behind the proxy.
#[derive(Clone, Debug)]
pub struct Originator(Arc<Towards>);

#[derive(Debug)]
struct Towards {
    name: ServerName<'static>,
    authorities: PathBuf,
    offers: ArcSwap<Offers>,
    /// What stood in the file when it was last looked at, right or wrong.
    looked_at: Mutex<Digest>,
}

/// What is spoken is known beforehand and nothing else is offered: gRPC to the same server as
/// HTTP/1.1 takes connections of its own.
#[derive(Debug)]
struct Offers {
    /// What is no HTTP, and has no name here.
    other: Arc<ClientConfig>,
    http1: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
}

impl PartialEq for Originator {
    fn eq(&self, other: &Originator) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Originator {}

impl Originator {
    /// Trusts the authorities in this file, and no others, to vouch for the server `name`.
    pub fn new(name: ServerName<'static>, authorities: &Path) -> Result<Originator, TlsError> {
        let looked_at = Mutex::new(digest([Some(authorities), None, None]));
        let offers = ArcSwap::from_pointee(offers(authorities)?);
        Ok(Originator(Arc::new(Towards { name, authorities: authorities.to_owned(), offers, looked_at })))
    }

    /// For one connection with this protocol: its connector, and the name of the server.
    pub fn connector(&self, protocol: Protocol) -> (TlsConnector, ServerName<'static>) {
        let offers = self.0.offers.load();
        let config = match protocol {
            Protocol::Http1 => &offers.http1,
            Protocol::Http2 => &offers.http2,
        };
        (TlsConnector::from(Arc::clone(config)), self.0.name.clone())
    }

    /// For one connection without HTTP: its connector, and the name of the server.
    pub fn connector_of_other(&self) -> (TlsConnector, ServerName<'static>) {
        (TlsConnector::from(Arc::clone(&self.0.offers.load().other)), self.0.name.clone())
    }
}

impl Renew for Originator {
    fn file(&self) -> &Path {
        &self.0.authorities
    }

    fn renew(&self) -> Result<bool, TlsError> {
        if !has_changed(&self.0.looked_at, digest([Some(&*self.0.authorities), None, None])) {
            return Ok(false);
        }
        self.0.offers.store(Arc::new(offers(&self.0.authorities)?));
        Ok(true)
    }
}

fn offers(authorities: &Path) -> Result<Offers, TlsError> {
    let wrong = |problem: String| TlsError::Authorities { path: authorities.to_owned(), problem };
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(error.to_string()))?
        .with_root_certificates(roots(authorities)?)
        .with_no_client_auth();
    let speaking = |protocol: &[u8]| {
        let mut config = config.clone();
        config.alpn_protocols = vec![protocol.to_vec()];
        Arc::new(config)
    };
    let (http1, http2) = (speaking(b"http/1.1"), speaking(b"h2"));
    Ok(Offers { other: Arc::new(config), http1, http2 })
}

/// The authorities in a file.
fn roots(path: &Path) -> Result<rustls::RootCertStore, TlsError> {
    let mut roots = rustls::RootCertStore::empty();
    for authority in certificates(path, "certificate of an authority")? {
        roots
            .add(authority)
            .map_err(|error| TlsError::Authorities { path: path.to_owned(), problem: error.to_string() })?;
    }
    Ok(roots)
}

/// What stands in these files; one that cannot be read counts as a content of its own.
fn digest(files: [Option<&Path>; 3]) -> Digest {
    let mut digest = Sha256::new();
    for file in files.into_iter().flatten() {
        let content = std::fs::read(file).ok();
        digest.update(content.as_ref().map_or(u64::MAX, |content| content.len() as u64).to_le_bytes());
        digest.update(content.unwrap_or_default());
    }
    digest.finalize().into()
}

fn read(certificate: &Path, key: &Path, authorities: Option<&Path>) -> Result<Arc<ServerConfig>, TlsError> {
    let chain = certificates(certificate, "certificate chain")?;
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|source| TlsError::File {
        path: key.to_owned(),
        wanted: "private key",
        source,
    })?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let unusable = |source| TlsError::Unusable { path: certificate.to_owned(), source };
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(unusable)?;
    let builder = match authorities {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let wrong = |problem: String| TlsError::Authorities { path: path.to_owned(), problem };
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(path)?), provider)
                .build()
                .map_err(|error| wrong(error.to_string()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_single_cert(chain, secret).map_err(unusable)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn certificates(path: &Path, wanted: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let file = |source| TlsError::File { path: path.to_owned(), wanted, source };
    let chain: Vec<_> =
        CertificateDer::pem_file_iter(path).map_err(file)?.collect::<Result<_, _>>().map_err(file)?;
    if chain.is_empty() {
        return Err(TlsError::Empty { path: path.to_owned(), wanted });
    }
    Ok(chain)
}
