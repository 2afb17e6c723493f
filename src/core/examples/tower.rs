//! The admission controller alone, as a tower layer around any service.
//!
//! ```sh
//! cargo run -p rayguard-core --example tower     # one greedy client beside a polite one, and who was served when
//! ```

#![expect(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a program for the terminal, with tasks of its own"
)]

mod admission;

use admission::Admission;
use rayguard_core::admission::controller::Shed;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tower::{Layer, Service, ServiceExt};

/// What a request says of itself: who asks. A number that is always the same for one client will do.
trait Asked {
    fn client(&self) -> u64;
}

/// Puts admission before a service.
#[derive(Clone)]
struct AdmissionLayer(Arc<Admission>);

/// A service behind admission.
#[derive(Clone)]
struct Admitted<S> {
    inner: S,
    admission: Arc<Admission>,
}

/// Why there is no answer.
#[derive(Debug)]
enum Failure<E> {
    /// It was not admitted.
    Shed(Shed),
    /// The service itself failed.
    Inner(E),
}

impl<S> Layer<S> for AdmissionLayer {
    type Service = Admitted<S>;
    fn layer(&self, inner: S) -> Admitted<S> {
        Admitted { inner, admission: Arc::clone(&self.0) }
    }
}

impl<S, R> Service<R> for Admitted<S>
where
    S: Service<R> + Clone + Send + 'static,
    S::Future: Send,
    R: Asked + Send + 'static,
{
    type Response = S::Response;
    type Error = Failure<S::Error>;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, Failure<S::Error>>> + Send>>;

    /// Always: who is admitted depends on who asks, which is known with the request.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: R) -> Self::Future {
        let (inner, admission) = (self.inner.clone(), Arc::clone(&self.admission));
        Box::pin(async move {
            let _turn = admission.turn(request.client()).await.map_err(Failure::Shed)?;
            inner.oneshot(request).await.map_err(Failure::Inner)
        })
    }
}

/// A request of this example.
struct Question {
    client: u64,
}

impl Asked for Question {
    fn client(&self) -> u64 {
        self.client
    }
}

/// A greedy client asks eight times, then a polite one once, of a service that does one thing a second.
/// Gives back who was served, in order.
async fn greedy_and_polite() -> Vec<u64> {
    let admission = Admission::new(1, 8, Duration::from_secs(60));
    let (served, mut order) = tokio::sync::mpsc::unbounded_channel();
    let service = AdmissionLayer(admission).layer(tower::service_fn(move |question: Question| {
        let served = served.clone();
        async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            served.send(question.client)
        }
    }));
    let asked: Vec<_> = [1; 8]
        .into_iter()
        .chain([2])
        .map(|client| tokio::spawn(service.clone().oneshot(Question { client })))
        .collect();
    drop(service);
    for each in asked {
        match each.await {
            Ok(Err(Failure::Shed(shed))) => println!("no room: {}", shed.reason.label()),
            Ok(Err(Failure::Inner(error))) => println!("not served: {error}"),
            _ => {}
        }
    }
    let mut clients = Vec::new();
    while let Some(client) = order.recv().await {
        clients.push(client);
    }
    clients
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    println!("served, in order: {:?}", greedy_and_polite().await);
}

#[tokio::test(start_paused = true)]
async fn the_polite_client_does_not_wait_for_all_that_the_greedy_one_asked() {
    let order = greedy_and_polite().await;
    // One is at work when the polite one asks, and one has waited longer.
    assert_eq!(order, [1, 1, 2, 1, 1, 1, 1, 1, 1]);
}
