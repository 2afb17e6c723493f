//! Sends a Ray-shaped load from a plan, and says what became of it.
//!
//! For trying limits out, and for this project's own measurements: an open loop that does not
//! slow down with the server it measures, many source addresses on one machine
//! (127.0.0.x), credentials, retries, held tails, and a bound on everything. One thread drives
//! it all, so that a proxy on the same machine keeps its share of the processor.

mod arrivals;
mod client;
pub mod plan;
pub mod propose;
pub mod report;

use arrivals::{Arrivals, unit};
use client::Client;
pub use client::Fate;
use plan::{Plan, Stream};
use rand_core::SeedableRng;
use rand_pcg::Pcg64Mcg;
use report::Sample;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

/// Sends the whole plan to `target` and returns its operations in the order in which they were due.
pub async fn send(plan: &Plan, target: SocketAddr) -> Vec<Sample> {
    let start = Instant::now() + LEAD;
    let run = Arc::new(LoadRun {
        start,
        duration_s: plan.duration_s,
        in_flight_max: plan.in_flight_max,
        in_flight: AtomicUsize::new(0),
        samples: Mutex::new(Vec::new()),
    });
    let mut streams = JoinSet::new();
    for (index, stream) in plan.streams.iter().enumerate() {
        let client = Arc::new(Client::new(stream.clone(), target, target.to_string()));
        let seed = plan.seed.wrapping_mul(1_000).wrapping_add(index as u64);
        let source =
            Source { index, stream: stream.clone(), client, run: Arc::clone(&run), choice: choice(seed) };
        for worker in 0..stream.workers.unwrap_or(0) {
            streams.spawn(source.clone().close_loop(u64::from(worker)));
        }
        streams.spawn(source.open_loop(Arrivals::new(stream, plan.duration_s, seed)));
    }
    while streams.join_next().await.is_some() {}
    let mut samples = std::mem::take(&mut *run.samples.lock().unwrap_or_else(PoisonError::into_inner));
    samples.sort_by(|a, b| a.due_s.total_cmp(&b.due_s));
    samples
}

/// Time to set everything up before the first arrival.
const LEAD: Duration = Duration::from_millis(50);

/// What all streams share.
struct LoadRun {
    start: Instant,
    duration_s: f64,
    in_flight_max: usize,
    in_flight: AtomicUsize,
    samples: Mutex<Vec<Sample>>,
}

/// One stream as it runs.
#[derive(Clone)]
struct Source {
    index: usize,
    stream: Stream,
    client: Arc<Client>,
    run: Arc<LoadRun>,
    choice: Pcg64Mcg,
}

impl Source {
    async fn open_loop(mut self, arrivals: Arrivals) {
        let mut under_way = JoinSet::new();
        for (n, due_s) in (0..).zip(arrivals) {
            let due = self.run.start + Duration::from_secs_f64(due_s);
            sleep_until(due).await;
            while under_way.try_join_next().is_some() {}
            let shape = self.choose();
            let Source { index, client, run, .. } = self.clone();
            if run.in_flight.fetch_add(1, Ordering::Relaxed) >= run.in_flight_max {
                run.in_flight.fetch_sub(1, Ordering::Relaxed);
                run.unsent(index, shape, due_s);
                continue;
            }
            under_way.spawn(async move { run.carry_out(index, &client, n, shape, due).await });
        }
        while under_way.join_next().await.is_some() {}
    }

    async fn close_loop(mut self, worker: u64) {
        let end = Duration::from_secs_f64(self.stream.until(self.run.duration_s));
        let think = Duration::from_secs_f64(self.stream.think_s);
        // Workers begin spread over one pause, as people do.
        let spread = think.mul_f64(unit(&mut choice(worker)));
        let begin = self.run.start + Duration::from_secs_f64(self.stream.from_s) + spread;
        sleep_until(begin).await;
        while self.run.start.elapsed() < end {
            let shape = self.choose();
            self.run.in_flight.fetch_add(1, Ordering::Relaxed);
            let asked = Instant::now();
            let succeeded = self.run.carry_out(self.index, &self.client, worker, shape, asked).await;
            // A refused worker without a pause of its own would spin: it breathes, as a loop in a shell does.
            sleep(if succeeded { think } else { think.max(BREATH) }).await;
        }
    }

    fn choose(&mut self) -> usize {
        let total: f64 = self.stream.requests.iter().map(|shape| shape.weight).sum();
        let mut mark = unit(&mut self.choice) * total;
        let chosen = self.stream.requests.iter().position(|shape| {
            mark -= shape.weight;
            mark < 0.0
        });
        chosen.unwrap_or(0)
    }
}

/// The least pause of a closed loop after a failure.
const BREATH: Duration = Duration::from_millis(10);

impl LoadRun {
    /// Carries out one operation and records it; whether it succeeded.
    async fn carry_out(&self, stream: usize, client: &Client, n: u64, shape: usize, due: Instant) -> bool {
        let late_s = due.elapsed().as_secs_f64();
        let outcome = client.operate(n, shape, due).await;
        let sample = Sample {
            stream,
            shape,
            due_s: due.saturating_duration_since(self.start).as_secs_f64(),
            late_s,
            latency_s: due.elapsed().as_secs_f64(),
            fate: outcome.fate,
            attempts: outcome.attempts,
            bytes: outcome.bytes,
        };
        self.record(sample);
        if let Some(held) = outcome.held {
            held.hold().await;
        }
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        sample.fate.is_success()
    }

    fn unsent(&self, stream: usize, shape: usize, due_s: f64) {
        let late_s = 0.0;
        self.record(Sample {
            stream,
            shape,
            due_s,
            late_s,
            latency_s: 0.0,
            fate: Fate::Unsent,
            attempts: 0,
            bytes: 0,
        });
    }

    fn record(&self, sample: Sample) {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner).push(sample);
    }
}

fn choice(seed: u64) -> Pcg64Mcg {
    Pcg64Mcg::seed_from_u64(seed ^ 0x5eed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use report::Report;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// Answers every request with 200, and closes without a word after `answers` of them.
    async fn answering(answers: usize) -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut set = JoinSet::new();
        set.spawn(async move {
            let mut lines = JoinSet::new();
            while let Ok((mut line, _)) = listener.accept().await {
                lines.spawn(async move {
                    let mut text = Vec::new();
                    let mut chunk = [0; 1024];
                    let mut left = answers;
                    while let Ok(read @ 1..) = line.read(&mut chunk).await {
                        text.extend_from_slice(&chunk[..read]);
                        while let Some(end) = text.windows(4).position(|four| four == b"\r\n\r\n") {
                            text.drain(..end + 4);
                            line.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
                            left -= 1;
                            if left == 0 {
                                return;
                            }
                        }
                    }
                });
            }
        });
        set.detach_all();
        address
    }

    #[tokio::test]
    async fn every_operation_is_accounted_for() {
        let target = answering(usize::MAX).await;
        let plan: Plan = toml::from_str(
            "duration_s = 0.3\n\
             [[stream]]\nname = \"kept\"\nrate = 100\nspacing = \"even\"\naddresses = 3\nfirst_address = \"127.0.0.40\"\n\
             tokens = 2\nrequest = [{ path = \"/a/{n}\" }]\n\
             [[stream]]\nname = \"new\"\nrate = 50\nspacing = \"even\"\nconnection = \"new\"\nrequest = [{ path = \"/b\" }]",
        )
        .unwrap();
        let report = Report::new(&plan, &send(&plan, target).await);
        let whole = &report.windows[0].streams;
        assert_eq!((whole["kept"].due, whole["kept"].in_time), (30, 30));
        assert_eq!((whole["new"].due, whole["new"].in_time), (15, 15));
    }

    #[tokio::test]
    async fn a_kept_line_that_the_server_closed_is_replaced() {
        let target = answering(2).await;
        let plan: Plan = toml::from_str(
            "duration_s = 0.4\n[[stream]]\nname = \"a\"\nrate = 50\nspacing = \"even\"\ntimeout_s = 60\n\
             request = [{ path = \"/\" }]",
        )
        .unwrap();
        let report = Report::new(&plan, &send(&plan, target).await);
        assert_eq!(report.windows[0].streams["a"].in_time, 20);
    }

    #[tokio::test]
    async fn a_target_that_is_not_there_breaks_every_operation() {
        let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let plan: Plan = toml::from_str(
            "duration_s = 0.1\n[[stream]]\nname = \"a\"\nrate = 50\nspacing = \"even\"\n\
             retry = { max = 1 }\nrequest = [{ path = \"/\" }]",
        )
        .unwrap();
        let report = Report::new(&plan, &send(&plan, free).await);
        let figures = &report.windows[0].streams["a"];
        assert_eq!(figures.fates.get("broken"), Some(&5));
        assert_eq!(figures.attempts, 10, "each was tried again once");
    }
}
