//! TLS towards clients: certificates from files, client certificates if asked for.
//!
//! Ray's own ports speak no TLS; the door ends it. The files are read when a listener opens
//! and again at a reload; a connection keeps the certificate it began with, and a reload that
//! fails leaves the certificate that works in force.

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_rustls::TlsAcceptor;

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
    /// The authorities for client certificates are of no use.
    #[error("client authorities {path}: {problem}", path = path.display())]
    Authorities {
        /// Their file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

/// Ends TLS with the certificate in force.
#[derive(Debug)]
pub struct Terminator {
    certificate: PathBuf,
    key: PathBuf,
    client_authorities: Option<PathBuf>,
    config: ArcSwap<ServerConfig>,
}

impl Terminator {
    /// Reads the files. With `client_authorities`, only clients with a certificate of theirs
    /// are let in.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn new(
        certificate: &Path,
        key: &Path,
        client_authorities: Option<&Path>,
    ) -> Result<Terminator, TlsError> {
        let config = read(certificate, key, client_authorities)?;
        Ok(Terminator {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            client_authorities: client_authorities.map(Path::to_owned),
            config: ArcSwap::from(config),
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
    #[must_use]
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.config.load_full())
    }
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
            let mut roots = rustls::RootCertStore::empty();
            for authority in certificates(path, "certificate of an authority")? {
                roots.add(authority).map_err(|error| wrong(error.to_string()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
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
