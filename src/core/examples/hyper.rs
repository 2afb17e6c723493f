//! The admission controller alone, in a hyper server: two requests at once, four that wait, the rest is told when
//! to come back.
//!
//! ```sh
//! cargo run -p rayguard-core --example hyper     # asks itself ten times at once, and prints what came back
//! ```

#![expect(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a program for the terminal, with tasks of its own"
)]

mod admission;

use admission::Admission;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rayguard_core::admission::controller::Shed;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

/// What the server is there for: it can do two at once.
async fn work() -> Response<String> {
    tokio::time::sleep(Duration::from_secs(1)).await;
    Response::new("done\n".to_owned())
}

async fn handle(admission: Arc<Admission>, client: u64) -> Result<Response<String>, Infallible> {
    Ok(match admission.turn(client).await {
        Ok(_turn) => work().await, // the turn is held until here, and goes back if the client leaves before
        Err(shed) => refusal(shed),
    })
}

fn refusal(shed: Shed) -> Response<String> {
    let mut response = Response::new(format!("no room ({}); try again\n", shed.reason.label()));
    *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
    response.headers_mut().insert("retry-after", shed.retry_after_s.into());
    response
}

/// Serves one connection. Its client is told from others by a number, as an address would.
async fn serve(io: DuplexStream, admission: Arc<Admission>, client: u64) {
    let service = service_fn(move |_: Request<Incoming>| handle(Arc::clone(&admission), client));
    let _ = http1::Builder::new().serve_connection(TokioIo::new(io), service).await; // a client that left
}

/// Asks once, and gives back the status line and the headers.
async fn ask(admission: Arc<Admission>, client: u64) -> std::io::Result<String> {
    let (mut ours, theirs) = tokio::io::duplex(4096);
    let server = tokio::spawn(serve(theirs, admission, client));
    ours.write_all(b"GET / HTTP/1.1\r\nhost: here\r\nconnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    ours.read_to_string(&mut answer).await?;
    drop(server.await);
    Ok(answer)
}

/// Ten clients at once, in virtual time if the runtime's is paused.
async fn ten_at_once() -> std::io::Result<Vec<String>> {
    let admission = Admission::new(2, 4, Duration::from_secs(10));
    let asked: Vec<_> = (0..10).map(|client| tokio::spawn(ask(Arc::clone(&admission), client))).collect();
    let mut answers = Vec::new();
    for each in asked {
        answers.push(each.await.map_err(std::io::Error::other)??);
    }
    Ok(answers)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    for answer in ten_at_once().await? {
        println!("{}", answer.lines().next().unwrap_or_default());
    }
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn six_of_ten_are_served_and_four_are_told_when_to_come_back() {
    let answers = ten_at_once().await.unwrap();
    let count = |part: &str| answers.iter().filter(|answer| answer.contains(part)).count();
    assert_eq!((count("200 OK"), count("429 Too Many Requests"), count("retry-after: ")), (6, 4, 4));
}
