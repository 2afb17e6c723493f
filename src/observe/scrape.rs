//! Fetching the pages of Ray's exporters.
//!
//! A head has three (agent, autoscaler, dashboard), each other node one. They answer in 20 ms
//! when idle and took 3 s under load, so each has its own deadline and none waits for another.
//! A few are asked at once, and each page is handed on before the next one is fetched: memory
//! is bounded by the few, not by the number of nodes. Nothing is started in the background;
//! who calls [`scrape_all`] decides on which task it runs. It is never on a request's path.
//!
//! The limits follow the head, and a cluster has a thousand other nodes, some of which do not
//! answer. So [`Targets`] keeps the head's pages apart from all others, to be asked in rounds of
//! their own, and [`Turns`] asks a node that fails less and less often. Where it is only guessed which
//! pages are the head's, [`search`] asks many at once until one says that it is.

use crate::core::signal::reading::Missing;
use crate::core::time::{Time, WallMs};
use crate::observe::fetch::{self, FetchError, FetchLimits};
use crate::proxy::clock::Clock;
use reqwest::Client;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::{Future, poll_fn};
use std::net::Ipv6Addr;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use url::Url;

/// Targets asked at once.
pub const AT_ONCE: usize = 8;

/// And while the head is searched for among them; most of its pages are refused, or small.
const AT_ONCE_IN_SEARCH: usize = 64;

/// A node that has not answered by then is passed over in that search.
const SEARCH_TIMEOUT: Duration = Duration::from_secs(2);

/// The longest pause before a node that fails is asked again.
const BACK_OFF_MAX: Duration = Duration::from_secs(300);

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
    /// Reads `host:port` (the path is then `/metrics`) or a URL. An IPv6 address is understood
    /// without its brackets too, as older versions of Ray write it.
    pub fn parse(given: &str) -> Result<Target, BadTarget> {
        let bad =
            |problem: &str| BadTarget { given: without_credentials(given), problem: problem.to_owned() };
        let text = given.trim();
        let text = match text.rsplit_once(':') {
            Some((host, port)) if host.parse::<Ipv6Addr>().is_ok() => format!("http://[{host}]:{port}"),
            _ if text.contains("://") => text.to_owned(),
            Some((_, port)) if !port.contains(']') => format!("http://{text}"),
            _ => return Err(bad("it has no port")),
        };
        let mut url = Url::parse(&text).map_err(|error| bad(&error.to_string()))?;
        if url.scheme() != "http" {
            return Err(bad("only http:// is supported"));
        }
        let Some(host) = url.host_str() else { return Err(bad("it has no host")) };
        let port = url.port_or_known_default().unwrap_or(80);
        if port == 0 {
            return Err(bad("nothing listens on port 0"));
        }
        let name = format!("{host}:{port}").into();
        if url.path() == "/" {
            url.set_path("/metrics");
        }
        url.set_fragment(None);
        Ok(Target { name, url })
    }

    /// The host alone.
    pub fn host(&self) -> Option<&str> {
        self.url.host_str()
    }

    /// As the signals know its fault.
    pub fn missing(&self, fault: &FetchError) -> Missing {
        fault.missing(&self.name)
    }
}

/// All targets, those of the head apart.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Targets {
    /// Asked at once, each round.
    pub head: Vec<Target>,
    /// All others.
    pub nodes: Vec<Target>,
    /// Whether that they are the head's is known, and not guessed.
    pub certain: bool,
}

impl Targets {
    /// Tells the head's pages from the others by their host: one of `heads`, where any is listed. Else it is
    /// guessed to be the host that most targets name, since a head has three exporters and most other nodes one;
    /// and where none stands out, the first targets take the head's place.
    pub fn new(targets: Vec<Target>, heads: &BTreeSet<String>) -> Targets {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for host in targets.iter().filter_map(Target::host) {
            *counts.entry(host).or_default() += 1;
        }
        let certain = counts.keys().any(|host| heads.contains(*host));
        let most = counts.values().copied().max().unwrap_or(0);
        let stands_out = |target: &Target| {
            let host = target.host().unwrap_or_default();
            if certain { heads.contains(host) } else { most > 1 && counts.get(host) == Some(&most) }
        };
        let is_heads: Vec<bool> = targets.iter().map(stands_out).collect();
        let any = is_heads.contains(&true);
        let mut whole = Targets { certain, ..Targets::default() };
        for (target, is_heads) in targets.into_iter().zip(is_heads) {
            let place = if (is_heads || !any) && whole.head.len() < AT_ONCE {
                &mut whole.head
            } else {
                &mut whole.nodes
            };
            place.push(target);
        }
        whole
    }

    /// The same, now that these hosts are known to be the head's; none where that is no news.
    pub fn with_heads(&self, heads: &BTreeSet<String>) -> Option<Targets> {
        let is_heads = |target: &Target| target.host().is_some_and(|host| heads.contains(host));
        let listed = self.all().any(is_heads);
        let is_so = self.certain && self.head.iter().all(is_heads);
        (listed && !is_so).then(|| Targets::new(self.all().cloned().collect(), heads))
    }

    /// All of them, the head's first.
    pub fn all(&self) -> impl Iterator<Item = &Target> {
        self.head.iter().chain(&self.nodes)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.head.is_empty() && self.nodes.is_empty()
    }
}

/// Whose turn is it? A node that answers is asked each round; one that fails is asked again
/// after a pause that doubles, and at most [`AT_ONCE`] of those in a round, so that any number
/// of silent nodes lengthens a round by one time-out at most.
#[derive(Clone, Debug, Default)]
pub struct Turns(BTreeMap<Arc<str>, Turn>);

#[derive(Clone, Debug)]
struct Turn {
    target: Target,
    failures: u32,
    due: Time,
}

impl Turns {
    /// Goes on with these; what is known of those that stay is kept.
    pub fn renew(&mut self, targets: &[Target]) {
        let mut before = std::mem::take(&mut self.0);
        for target in targets {
            let known = before.remove(&target.name).filter(|turn| turn.target == *target);
            let new = || Turn { target: target.clone(), failures: 0, due: Time::ZERO };
            self.0.insert(target.name.clone(), known.unwrap_or_else(new));
        }
    }

    /// Those to be asked now: first who answers, then who failed and has waited longest.
    pub fn due(&self, now: Time) -> Vec<Target> {
        let (mut failed, well): (Vec<&Turn>, Vec<&Turn>) =
            self.0.values().partition(|turn| turn.failures > 0);
        failed.retain(|turn| turn.due <= now);
        failed.sort_by_key(|turn| turn.due);
        well.into_iter().chain(failed.into_iter().take(AT_ONCE)).map(|turn| turn.target.clone()).collect()
    }

    /// Notes what came of asking.
    pub fn note(&mut self, target: &Target, answered: bool, now: Time, interval: Duration) {
        let Some(turn) = self.0.get_mut(&target.name) else { return };
        turn.failures = if answered { 0 } else { turn.failures.saturating_add(1) };
        let pause = interval.saturating_mul(1 << turn.failures.min(16));
        turn.due = now + pause.min(BACK_OFF_MAX);
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
/// [`FetchError`]; whatever it is, the target is asked again next time.
pub async fn scrape(
    client: &Client,
    target: &Target,
    bounds: FetchLimits,
    clock: Clock,
) -> Result<Page, FetchError> {
    let (began, wall) = (clock.now(), clock.wall());
    let body = fetch::get(client, target.url.clone(), ACCEPT, None, bounds).await?.data()?;
    Ok(Page { body, began, wall, took: clock.now().since(began) })
}

type Fetching<'a> = Pin<Box<dyn Future<Output = Result<Page, FetchError>> + Send + 'a>>;

/// Fetches the pages of all targets, at most [`AT_ONCE`] at a time, and hands each one over
/// as it comes.
pub async fn scrape_all(
    client: &Client,
    targets: &[Target],
    bounds: FetchLimits,
    clock: Clock,
    mut on_page: impl FnMut(&Target, Result<Page, FetchError>),
) {
    let on_page = |target: &Target, page| {
        on_page(target, page);
        ControlFlow::Continue(())
    };
    ask(client, targets, (bounds, AT_ONCE), clock, on_page).await;
}

/// The same for all who may be the head, many at a time, until one is.
pub async fn search(
    client: &Client,
    targets: &[Target],
    bounds: FetchLimits,
    clock: Clock,
    on_page: impl FnMut(&Target, Result<Page, FetchError>) -> ControlFlow<()>,
) {
    let bounds = FetchLimits { timeout: bounds.timeout.min(SEARCH_TIMEOUT), ..bounds };
    ask(client, targets, (bounds, AT_ONCE_IN_SEARCH), clock, on_page).await;
}

async fn ask(
    client: &Client,
    targets: &[Target],
    (bounds, at_once): (FetchLimits, usize),
    clock: Clock,
    mut on_page: impl FnMut(&Target, Result<Page, FetchError>) -> ControlFlow<()>,
) {
    let mut waiting: VecDeque<&Target> = targets.iter().collect();
    let mut under_way: Vec<(&Target, Fetching<'_>)> = Vec::new();
    loop {
        while under_way.len() < at_once
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
        if on_page(target, result).is_break() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::fetch::server;
    use tokio::io::AsyncWriteExt;

    const BOUNDS: FetchLimits = FetchLimits { timeout: Duration::from_secs(4), body_bytes_max: 16 << 20 };

    #[test]
    fn targets_are_read_as_people_write_them() {
        let read =
            |given| Target::parse(given).map(|target| (target.name.to_string(), target.url.to_string()));
        let both = |name: &str, url: &str| Ok((name.to_owned(), url.to_owned()));
        assert_eq!(read("192.0.2.2:8080"), both("192.0.2.2:8080", "http://192.0.2.2:8080/metrics"));
        assert_eq!(read("http://head/custom"), both("head:80", "http://head/custom"));
        assert_eq!(read("[::1]:9090"), both("[::1]:9090", "http://[::1]:9090/metrics"));
        assert_eq!(read("http://u:p@head:1/m"), both("head:1", "http://u:p@head:1/m"));
        assert_eq!(read("fd00::5:8080"), both("[fd00::5]:8080", "http://[fd00::5]:8080/metrics"));
        for none in [
            "https://head:1",
            "",
            "fd00::5",
            "::1",
            "10.0.0.1:-1",
            "10.0.0.1:0",
            "ho st:1",
            "127.9.9.9",
            "head",
            "[::1]",
        ] {
            assert!(read(none).is_err(), "{none}");
        }
    }

    fn targets(names: &[&str]) -> Vec<Target> {
        names.iter().map(|name| Target::parse(name).unwrap()).collect()
    }

    fn names(targets: &[Target]) -> Vec<&str> {
        targets.iter().map(|target| &*target.name).collect()
    }

    #[test]
    fn the_heads_pages_are_found_wherever_they_stand_in_the_list() {
        let list = ["10.0.0.9:8080", "10.0.0.1:8080", "10.0.0.8:8080", "10.0.0.1:44217", "10.0.0.1:44227"];
        let heads = |host: &str| BTreeSet::from([host.to_owned()]);
        let found = Targets::new(targets(&list), &heads("127.0.0.1"));
        assert_eq!(names(&found.head), ["10.0.0.1:8080", "10.0.0.1:44217", "10.0.0.1:44227"]);
        assert_eq!(names(&found.nodes), ["10.0.0.9:8080", "10.0.0.8:8080"]);
        // A head whose agent alone exports is known by its address, however many exporters others have.
        let known = Targets::new(targets(&list), &heads("10.0.0.8"));
        assert_eq!((names(&known.head), known.nodes.len()), (vec!["10.0.0.8:8080"], 4));
        assert!(known.certain && !found.certain);
        // Or by its page, once that is read.
        assert_eq!(found.with_heads(&heads("10.0.0.8")).unwrap().head, known.head);
        assert_eq!(known.with_heads(&heads("10.0.0.8")), None);
        assert_eq!(found.with_heads(&heads("10.0.0.1")).unwrap().head, found.head, "and then it is certain");
        assert_eq!(found.with_heads(&heads("10.0.0.5")), None);
        // And where nothing tells them apart, the first ones are asked in the first place.
        let nodes: Vec<String> = (1..20).map(|node| format!("10.0.0.{node}:8080")).collect();
        let nodes: Vec<&str> = nodes.iter().map(String::as_str).collect();
        let found = Targets::new(targets(&nodes), &BTreeSet::new());
        assert_eq!((found.head.len(), found.nodes.len()), (AT_ONCE, 19 - AT_ONCE));
        assert_eq!(found.all().count(), 19);
    }

    #[test]
    fn a_node_that_fails_is_asked_less_often_and_one_that_answers_each_time() {
        let interval = Duration::from_secs(5);
        let mut turns = Turns::default();
        turns.renew(&targets(&["well:1", "ill:1"]));
        let mut asked = 0;
        for round in 0..720 {
            let now = Time::ZERO + interval * round;
            let due = turns.due(now);
            assert!(due.iter().any(|target| &*target.name == "well:1"));
            asked += due.len() - 1;
            for target in &due {
                turns.note(target, &*target.name == "well:1", now, interval);
            }
        }
        assert!((15..=20).contains(&asked), "{asked} times in an hour");
        let now = Time::ZERO + interval * 720 + BACK_OFF_MAX;
        turns.note(&targets(&["ill:1"])[0], true, now, interval);
        assert_eq!(turns.due(now).len(), 2, "one answer is enough");
    }

    #[test]
    fn any_number_of_silent_nodes_takes_few_turns_of_a_round() {
        let interval = Duration::from_secs(5);
        let nodes: Vec<String> = (1..1000).map(|port| format!("node:{port}")).collect();
        let nodes: Vec<Target> = nodes.iter().map(|name| Target::parse(name).unwrap()).collect();
        let mut turns = Turns::default();
        turns.renew(&nodes);
        nodes.iter().skip(10).for_each(|target| turns.note(target, false, Time::ZERO, interval));
        let later = Time::ZERO + BACK_OFF_MAX * 2;
        let due = turns.due(later);
        assert_eq!(due.len(), 10 + AT_ONCE);
        due.iter().skip(10).for_each(|target| turns.note(target, false, later, interval));
        let next = turns.due(later);
        assert!(next.iter().skip(10).all(|target| !due.contains(target)), "each has its turn");
        turns.renew(&nodes);
        assert_eq!(turns.due(later), next, "a list that has not changed changes no turn");
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
                scrape_all(&fetch::client().unwrap(), &targets, BOUNDS, clock, |target, result| {
                    seen.push((target.name.to_string(), result.map(|page| page.body)));
                })
                .await;
                seen.sort_by_key(|(name, _)| *name != good);
                let expected = [(good, Ok(b"up 1\n".to_vec())), (bad, Err(FetchError::Status(404)))];
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
                scrape_all(&fetch::client().unwrap(), &targets, BOUNDS, clock, |target, result| {
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
            scrape_all(&fetch::client().unwrap(), &targets, BOUNDS, clock, |_, result| {
                count += usize::from(result.is_ok());
            })
            .await;
            assert_eq!(count, targets.len());
        })
        .await;
    }
}
