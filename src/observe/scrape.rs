//! Fetching the pages of Ray's exporters.
//!
//! A head has three (agent, autoscaler, dashboard), each other node one. They answer in 20 ms
//! when idle and took 3 s under load, so each has its own deadline and none waits for another.
//! A few are asked at once, and each page is handed on before the next one is fetched: memory
//! is bounded by the few, not by the number of nodes. Nothing is started in the background;
//! who calls [`scrape_all`] decides on which task it runs. It is never on a request's path.

use crate::core::signal::reading::Missing;
use crate::core::time::{Time, WallMs};
use crate::observe::fetch::{self, Bounds, Fault};
use crate::runtime::clock::Clock;
use reqwest::Client;
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use url::Url;

/// Timeout and size cap of a scrape unless configured: Ray's pages took up to 3 s under load,
/// and a page of 16 MiB would be 25 times the largest one seen.
pub const DEFAULT_BOUNDS: Bounds = Bounds { timeout: Duration::from_secs(4), body_bytes_max: 16 << 20 };

/// Targets asked at once.
pub const AT_ONCE: usize = 8;

const ACCEPT: &str = "text/plain;version=0.0.4;q=1,*/*;q=0.1";

/// An exporter.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Target {
    /// `host:port`, for metrics, logs and readings.
    pub name: Arc<str>,
    /// Where its page is.
    pub url: Url,
}

/// Why a target's address is none.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("`{given}` is not a target: {problem}; write `host:port` or `http://host:port/path`")]
pub struct BadTarget {
    /// As written.
    pub given: String,
    /// What is wrong.
    pub problem: String,
}

/// A page and the circumstances.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Page {
    /// The body.
    pub body: Vec<u8>,
    /// When it was asked for.
    pub began: Time,
    /// The wall clock then.
    pub wall: WallMs,
    /// How long it took to come.
    pub took: Duration,
}

impl Target {
    /// Reads `host:port` (the path is then `/metrics`) or a URL.
    ///
    /// # Errors
    /// [`BadTarget`].
    pub fn parse(given: &str) -> Result<Target, BadTarget> {
        let bad =
            |problem: &str| BadTarget { given: without_credentials(given), problem: problem.to_owned() };
        let text = given.trim();
        let text = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let mut url = Url::parse(&text).map_err(|error| bad(&error.to_string()))?;
        if url.scheme() != "http" {
            return Err(bad("only http:// is supported"));
        }
        let Some(host) = url.host_str() else { return Err(bad("it has no host")) };
        let name = format!("{host}:{}", url.port_or_known_default().unwrap_or(80)).into();
        if url.path() == "/" {
            url.set_path("/metrics");
        }
        url.set_fragment(None);
        Ok(Target { name, url })
    }

    /// As the signals know its fault.
    #[must_use]
    pub fn missing(&self, fault: &Fault) -> Missing {
        fault.missing(&self.name)
    }
}

fn without_credentials(given: &str) -> String {
    match given.rsplit_once('@') {
        Some((_, rest)) => format!("..@{rest}"),
        None => given.to_owned(),
    }
}

/// Fetches one page.
///
/// # Errors
/// [`Fault`]; whatever it is, the target is asked again next time.
pub async fn scrape(client: &Client, target: &Target, bounds: Bounds, clock: Clock) -> Result<Page, Fault> {
    let (began, wall) = (clock.now(), clock.wall());
    let body = fetch::get(client, target.url.clone(), ACCEPT, None, bounds).await?.data()?;
    Ok(Page { body, began, wall, took: clock.now().since(began) })
}

type Fetching<'a> = Pin<Box<dyn Future<Output = Result<Page, Fault>> + Send + 'a>>;

/// Fetches the pages of all targets, at most [`AT_ONCE`] at a time, and hands each one over
/// as it comes.
pub async fn scrape_all(
    client: &Client,
    targets: &[Target],
    bounds: Bounds,
    clock: Clock,
    mut on_page: impl FnMut(&Target, Result<Page, Fault>),
) {
    let mut waiting: VecDeque<&Target> = targets.iter().collect();
    let mut under_way: Vec<(&Target, Fetching<'_>)> = Vec::new();
    loop {
        while under_way.len() < AT_ONCE
            && let Some(target) = waiting.pop_front()
        {
            under_way.push((target, Box::pin(scrape(client, target, bounds, clock))));
        }
        if under_way.is_empty() {
            return;
        }
        let (place, result) = poll_fn(|context| {
            let mut polls = under_way.iter_mut().enumerate();
            let done = polls.find_map(|(place, (_, future))| match future.as_mut().poll(context) {
                Poll::Ready(result) => Some((place, result)),
                Poll::Pending => None,
            });
            done.map_or(Poll::Pending, Poll::Ready)
        })
        .await;
        let (target, _) = under_way.swap_remove(place);
        on_page(target, result);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::fetch::server;
    use tokio::io::AsyncWriteExt;

    #[test]
    fn targets_are_read_as_people_write_them() {
        let read =
            |given| Target::parse(given).map(|target| (target.name.to_string(), target.url.to_string()));
        let both = |name: &str, url: &str| Ok((name.to_owned(), url.to_owned()));
        assert_eq!(read("192.0.2.2:8080"), both("192.0.2.2:8080", "http://192.0.2.2:8080/metrics"));
        assert_eq!(read("http://head/custom"), both("head:80", "http://head/custom"));
        assert_eq!(read("[::1]:9090"), both("[::1]:9090", "http://[::1]:9090/metrics"));
        assert_eq!(read("http://u:p@head:1/m"), both("head:1", "http://u:p@head:1/m"));
        assert!(read("https://head:1").is_err());
        assert!(read("").is_err());
    }

    #[test]
    fn a_bad_target_does_not_repeat_a_password() {
        let error = Target::parse("https://user:secret@head:1").unwrap_err().to_string();
        assert!(!error.contains("secret") && error.contains("head:1"), "{error}");
    }

    #[tokio::test]
    async fn each_target_gives_its_own_page_or_its_own_fault() {
        let page = server::answer("200 OK", "text/plain; version=0.0.4", "up 1\n");
        server::with(page, async |good| {
            let missing = server::answer("404 Not Found", "text/plain", "");
            server::with(missing, async |bad| {
                let targets = [Target::parse(&bad).unwrap(), Target::parse(&good).unwrap()];
                let mut seen = Vec::new();
                let clock = Clock::start();
                scrape_all(&fetch::client().unwrap(), &targets, DEFAULT_BOUNDS, clock, |target, result| {
                    seen.push((target.name.to_string(), result.map(|page| page.body)));
                })
                .await;
                seen.sort_by_key(|(name, _)| *name != good);
                let expected = [(good, Ok(b"up 1\n".to_vec())), (bad, Err(Fault::Status { status: 404 }))];
                assert_eq!(seen, expected);
            })
            .await;
        })
        .await;
    }

    #[tokio::test]
    async fn a_target_that_hangs_holds_up_no_other() {
        let page = server::answer("200 OK", "text/plain", "up 1\n");
        let other_came = tokio::sync::Notify::new();
        // It answers only once the page of the other one has been handed over.
        let hang = async |mut stream: tokio::net::TcpStream| {
            other_came.notified().await;
            let _ = stream.write_all(&page).await;
        };
        server::serve(hang, async |hangs| {
            server::with(page.clone(), async |good| {
                let targets = [Target::parse(&hangs).unwrap(), Target::parse(&good).unwrap()];
                let mut order = Vec::new();
                let clock = Clock::start();
                scrape_all(&fetch::client().unwrap(), &targets, DEFAULT_BOUNDS, clock, |target, result| {
                    order.push((target.name.to_string(), result.is_ok()));
                    other_came.notify_one();
                })
                .await;
                assert_eq!(order, [(good, true), (hangs, true)]);
            })
            .await;
        })
        .await;
    }

    #[tokio::test]
    async fn more_targets_than_are_asked_at_once_are_all_asked() {
        let page = server::answer("200 OK", "text/plain", "up 1\n");
        server::with(page, async |address| {
            let targets = vec![Target::parse(&address).unwrap(); 3 * AT_ONCE + 1];
            let mut count = 0;
            let clock = Clock::start();
            scrape_all(&fetch::client().unwrap(), &targets, DEFAULT_BOUNDS, clock, |_, result| {
                count += usize::from(result.is_ok());
            })
            .await;
            assert_eq!(count, targets.len());
        })
        .await;
    }
}
