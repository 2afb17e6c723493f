//! What may stand before HTTP on a connection: TLS, a PROXY header, a Unix socket, HTTP/2.
#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

#[path = "proxy/rig.rs"]
mod rig;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rayguard::config::settings;
use rayguard::proxy::keepalive::DOZE;
use rayguard::proxy::listen::Listener;
use rayguard::proxy::tls::Terminator;
use rig::{Client, Rig, Setup, get};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

const STATUS: &str = "/api/jobs/raysubmit_1";

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tls").join(name)
}

fn terminator(client_authorities: Option<&str>) -> Arc<Terminator> {
    let authorities = client_authorities.map(fixture);
    Arc::new(Terminator::new(&fixture("server.pem"), &fixture("server.key"), authorities.as_deref()).unwrap())
}

fn connector(certificate: bool, protocols: &[&[u8]]) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(fixture("authority.pem")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let mut config = if certificate {
        let own = CertificateDer::from_pem_file(fixture("client.pem")).unwrap();
        let key = PrivateKeyDer::from_pem_file(fixture("client.key")).unwrap();
        builder.with_client_auth_cert(vec![own], key).unwrap()
    } else {
        builder.with_no_client_auth()
    };
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    TlsConnector::from(Arc::new(config))
}

async fn tcp() -> Listener {
    Listener::bind(&settings::Address::Tcp("127.0.0.1:0".parse().unwrap())).await.unwrap()
}

async fn rig(listener: Listener) -> Rig {
    Rig::on(listener, Setup::default()).await
}

fn localhost() -> ServerName<'static> {
    ServerName::try_from("localhost").unwrap()
}

#[tokio::test]
async fn tls_is_ended_here_and_ray_is_told() {
    let rig = rig(tcp().await.with_tls(Some(terminator(None)))).await;
    let stream = TcpStream::connect(rig.address).await.unwrap();
    let stream = connector(false, &[b"http/1.1"]).connect(localhost(), stream).await.unwrap();
    let mut client = Client::over(stream);
    client.send(get(STATUS, &[])).await;
    assert_eq!(client.answer().await.text(), "ray");
    assert_eq!(rig.ray.seen()[0].header("x-forwarded-proto"), Some("https"));
}

#[tokio::test]
async fn a_connection_in_tls_outlasts_its_sleep() {
    let rig = rig(tcp().await.with_tls(Some(terminator(None)))).await;
    let stream = TcpStream::connect(rig.address).await.unwrap();
    let stream = connector(false, &[b"http/1.1"]).connect(localhost(), stream).await.unwrap();
    let mut client = Client::over(stream);
    for _ in 0..2 {
        client.send(get(STATUS, &[])).await;
        assert_eq!(client.answer().await.text(), "ray");
        tokio::time::sleep(2 * DOZE).await;
    }
}

#[tokio::test]
async fn without_a_certificate_of_the_authoritys_no_client_gets_in_where_one_is_asked_for() {
    let rig = rig(tcp().await.with_tls(Some(terminator(Some("authority.pem"))))).await;
    for (certificate, welcome) in [(true, true), (false, false)] {
        let stream = TcpStream::connect(rig.address).await.unwrap();
        // With TLS 1.3 the refusal comes after the client's side of the handshake.
        let Ok(stream) = connector(certificate, &[]).connect(localhost(), stream).await else {
            assert!(!welcome);
            continue;
        };
        let mut client = Client::over(stream);
        client.try_send(get(STATUS, &[])).await;
        assert_eq!(client.try_answer().await.is_some(), welcome);
    }
    assert_eq!(rig.ray.count(), 1);
}

#[tokio::test]
async fn a_certificate_that_cannot_be_read_again_stays_in_force() {
    let dir = std::env::temp_dir().join(format!("rayguard-tls-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let (certificate, key) = (dir.join("server.pem"), dir.join("server.key"));
    std::fs::copy(fixture("server.pem"), &certificate).unwrap();
    std::fs::copy(fixture("server.key"), &key).unwrap();
    let tls = Arc::new(Terminator::new(&certificate, &key, None).unwrap());
    let rig = rig(tcp().await.with_tls(Some(Arc::clone(&tls)))).await;
    std::fs::write(&certificate, "nonsense").unwrap();
    let problem = tls.reload().unwrap_err().to_string();
    assert!(problem.contains("server.pem"), "{problem}");
    let stream = TcpStream::connect(rig.address).await.unwrap();
    assert!(connector(false, &[]).connect(localhost(), stream).await.is_ok());
    std::fs::copy(fixture("server.pem"), &certificate).unwrap();
    tls.reload().unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
}

#[tokio::test]
async fn a_proxy_header_names_the_client_if_a_listed_proxy_sends_it() {
    let rig = rig(tcp().await.with_proxy_protocol(true)).await;
    let mut client = rig.client().await;
    client.send(format!("PROXY TCP4 192.0.2.7 127.0.0.1 5 80\r\n{}", get(STATUS, &[]))).await;
    assert_eq!(client.answer().await.status, 200);
    assert_eq!(rig.ray.seen()[0].header("x-forwarded-for"), Some("192.0.2.7"));

    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.9:0".parse().unwrap()).unwrap();
    let mut stranger = Client::over(socket.connect(rig.address).await.unwrap());
    stranger.send(format!("PROXY TCP4 192.0.2.7 127.0.0.1 5 80\r\n{}", get(STATUS, &[]))).await;
    assert_eq!(stranger.answer().await.status, 200);
    assert_eq!(rig.ray.seen()[1].header("x-forwarded-for"), Some("127.0.0.9"), "not believed");

    let mut without = rig.client().await;
    without.try_send(get(STATUS, &[])).await;
    assert!(without.try_answer().await.is_none(), "a header is required where it is expected");
}

#[tokio::test]
async fn a_proxy_header_comes_before_tls() {
    let rig = rig(tcp().await.with_tls(Some(terminator(None))).with_proxy_protocol(true)).await;
    let mut stream = TcpStream::connect(rig.address).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stream, b"PROXY TCP4 192.0.2.7 127.0.0.1 5 80\r\n")
        .await
        .unwrap();
    let stream = connector(false, &[]).connect(localhost(), stream).await.unwrap();
    let mut client = Client::over(stream);
    client.send(get(STATUS, &[])).await;
    assert_eq!(client.answer().await.status, 200);
    assert_eq!(rig.ray.seen()[0].header("x-forwarded-for"), Some("192.0.2.7"));
}

#[tokio::test]
async fn a_unix_socket_is_served_and_one_left_behind_is_replaced() {
    let path = std::env::temp_dir().join(format!("rayguard-{}.sock", std::process::id()));
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap()); // left behind
    let address = settings::Address::Unix(path.clone());
    let rig = rig(Listener::bind(&address).await.unwrap()).await;
    let mut client = Client::over(UnixStream::connect(&path).await.unwrap());
    client.send(get(STATUS, &[])).await;
    assert_eq!(client.answer().await.text(), "ray");
    assert_eq!(rig.ray.seen()[0].header("x-forwarded-for"), Some("127.0.0.1"));
    assert!(Listener::bind(&address).await.is_err(), "one in use is not");
    std::fs::remove_file(&path).unwrap();
}

#[tokio::test]
async fn http_2_is_spoken_with_a_client_that_begins_so() {
    let rig = rig(tcp().await).await;
    let stream = TcpStream::connect(rig.address).await.unwrap();
    speak_http2(&rig, TokioIo::new(stream)).await;
}

#[tokio::test]
async fn http_2_is_agreed_on_in_tls() {
    let rig = rig(tcp().await.with_tls(Some(terminator(None)))).await;
    let stream = TcpStream::connect(rig.address).await.unwrap();
    let stream = connector(false, &[b"h2"]).connect(localhost(), stream).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    speak_http2(&rig, TokioIo::new(stream)).await;
}

async fn speak_http2<S>(rig: &Rig, stream: S)
where
    S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    rig.proxy.tasks.spawn_until_closed(async move {
        let _ = connection.await;
    });
    let asks = (0..20).map(|n| {
        let mut sender = sender.clone();
        async move {
            let request = http::Request::get(format!("http://head:8265/api/jobs/{n}?a=%2F"))
                .header("cookie", "a=b")
                .header("cookie", "ray-authentication-token=t")
                .body(Empty::<Bytes>::new())
                .unwrap();
            let response = sender.send_request(request).await.unwrap();
            assert_eq!(response.status(), 200);
            assert_eq!(response.headers().get_all("set-cookie").iter().count(), 2);
            assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "ray");
        }
    });
    for ask in asks {
        ask.await;
    }
    let seen = rig.ray.seen();
    assert_eq!(seen.len(), 20);
    assert_eq!(seen[3].line(), "GET /api/jobs/3?a=%2F HTTP/1.1");
    assert_eq!(seen[3].header("host"), Some("head:8265"));
    assert_eq!(seen[3].header("cookie"), Some("a=b; ray-authentication-token=t"), "one line in HTTP/1");
}
