//! Where are this head's exporters, and is there a head at all?
//!
//! Ray picks its metrics port at random unless told otherwise, so it writes down where they
//! are: `/tmp/ray/prom_metrics_service_discovery.json`, a file for Prometheus' `file_sd`, and
//! the same body at `GET /api/prometheus/sd` of the dashboard. The file needs no network and
//! no token, and may be left over from a head that is gone; the endpoint is of now, and needs
//! the token where authentication is on. The endpoint is asked first; the file is what is left
//! when the head is too busy to answer, which is when targets are needed most. Either may be
//! switched off. A head on this host that was started with `--temp-dir` has its file there
//! (`local_head.rs`), which goes before the usual place, since that may be another head's.
//!
//! **Which of them are the head's?** Its address is the upstream's, as its name is resolved; or, where the
//! upstream is this very host, the one that its processes name, or else this host's own. A page that said so
//! itself outranks them all: the upstream may be a load balancer, or a tunnel to somewhere else.
//!
//! An entry that is no address is skipped and named: Ray writes one for every node that exports
//! nothing, and one bad entry must not cost all the others.
//!
//! Every failure says what to do, for this is what an operator sees who starts rayguard beside
//! a head that is not there, or in another container.

use crate::observe::fetch::{self, Bounds, FetchError};
use crate::observe::local_head::{self, LocalHead};
use crate::observe::scrape::{BadTarget, Target, Targets};
use reqwest::Client;
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use url::Url;

/// Where Ray writes its exporters down.
pub const FILE: &str = "/tmp/ray/prom_metrics_service_discovery.json";

/// Its name, in whatever directory Ray was told to use.
const FILE_NAME: &str = "prom_metrics_service_discovery.json";

/// The dashboard's path with the same content.
pub const PATH: &str = "/api/prometheus/sd";

/// What a look-up may cost.
pub const BOUNDS: Bounds = Bounds { timeout: Duration::from_secs(4), body_bytes_max: 4 << 20 };

/// A name that is not resolved by then is passed over.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(2);

/// More targets than this are cut off, the head's own never.
pub const TARGETS_MAX: usize = crate::core::signal::series::TARGETS_MAX;

/// Targets, and where they are written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Discovery {
    /// In the order found, each once.
    pub targets: Targets,
    /// Entries that are no targets.
    pub bad: Vec<BadTarget>,
    /// How many more there were than [`TARGETS_MAX`].
    pub left_out: usize,
    /// Who told.
    pub origin: Origin,
}

/// Who told of the targets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    /// The dashboard.
    Dashboard,
    /// The file.
    File,
}

/// What answers at the dashboard's address.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct Version {
    /// `2.60.0`.
    pub ray_version: String,
    /// The commit Ray was built from.
    #[serde(default)]
    pub ray_commit: String,
    /// `session_2026-11-23_09-18-16_372701_9552`: a new one means a new head.
    #[serde(default)]
    pub session_name: String,
}

/// Why nothing was found.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DiscoverError {
    /// The file is not there.
    #[error("{path}: no such file; is Ray's head on this host (and /tmp/ray shared with this container)? A head started with `--temp-dir DIR` writes it into DIR: name it with `metrics.discovery_file`", path = .0.display())]
    NoFile(PathBuf),
    /// The file cannot be read.
    #[error("{path}: {problem}; let this user read it, or list the targets in the configuration", path = .path.display())]
    UnreadableFile {
        /// Where it is.
        path: PathBuf,
        /// The system's words.
        problem: String,
    },
    /// The dashboard gives none.
    #[error("{url}: {fault}{}", token_remedy(.fault))]
    Dashboard {
        /// What was asked.
        url: String,
        /// What came of it.
        fault: FetchError,
    },
    /// Not Prometheus' file_sd JSON.
    #[error("{origin} is not a list of targets: {problem}")]
    NotAList {
        /// What was read.
        origin: String,
        /// What is wrong.
        problem: String,
    },
    /// An empty list.
    #[error("{0} names no targets; the head may still be starting")]
    NoTargets(String),
    /// A list of which no entry is a target.
    #[error("{origin} names no target that can be read: {bad}")]
    Target {
        /// What was read.
        origin: String,
        /// The first one.
        bad: BadTarget,
    },
    /// Neither way is switched on.
    #[error("no metrics targets: `metrics.discover` and `metrics.discovery_file` are both off")]
    Off,
    /// Something else than Ray's dashboard answers.
    #[error("{url} is not Ray's dashboard: {problem}; check the upstream address")]
    NotRay {
        /// What was asked.
        url: String,
        /// What is wrong.
        problem: String,
    },
    /// Neither way worked.
    #[error("no metrics targets: {dashboard}; and {file}")]
    Neither {
        /// Why not from the dashboard.
        dashboard: Box<DiscoverError>,
        /// Why not from the file.
        file: Box<DiscoverError>,
    },
}

fn token_remedy(fault: &FetchError) -> &'static str {
    match fault {
        FetchError::Status(401 | 403) => "; say where Ray's token is with `metrics.token`",
        _ => "",
    }
}

/// Where targets may be looked for.
#[derive(Clone, Copy, Debug)]
pub struct Places<'a> {
    /// The dashboard's address, which is also the head's.
    pub dashboard: &'a Url,
    /// Whether the dashboard is asked.
    pub ask_dashboard: bool,
    /// Ray's token, for asking it.
    pub token: Option<&'a str>,
    /// Ray's file, unless it is left alone.
    pub file: Option<&'a Path>,
    /// Targets whose pages have said that they are the head's.
    pub of_head: &'a BTreeSet<String>,
}

/// Finds the exporters: from the dashboard, or else from the file.
///
/// # Errors
/// [`DiscoverError`], with both reasons where both were tried.
pub async fn discover(client: &Client, places: Places<'_>) -> Result<Discovery, DiscoverError> {
    let addresses = resolve(places.dashboard).await;
    let local = local_head(places.dashboard, &addresses).await;
    let listed = list(client, places, local.as_ref()).await?;
    let heads = heads(places.dashboard, &addresses, local.as_ref(), &listed.targets, places.of_head);
    Ok(listed.ranked(&heads))
}

/// Targets that were listed by hand, those of the head apart.
pub async fn rank(dashboard: &Url, targets: Vec<Target>, of_head: &BTreeSet<String>) -> Targets {
    let addresses = resolve(dashboard).await;
    let local = local_head(dashboard, &addresses).await;
    let heads = heads(dashboard, &addresses, local.as_ref(), &targets, of_head);
    Targets::new(targets, &heads)
}

/// The hosts of these targets, for [`Targets`].
pub fn hosts<'a>(targets: impl Iterator<Item = &'a str>) -> BTreeSet<String> {
    targets.filter_map(|name| Some(name.rsplit_once(':')?.0.to_owned())).collect()
}

/// The list as it was given.
async fn list(
    client: &Client,
    places: Places<'_>,
    local: Option<&LocalHead>,
) -> Result<Listed, DiscoverError> {
    let not_dashboard = if places.ask_dashboard {
        match from_dashboard(client, places.dashboard, places.token).await {
            Ok(listed) => return Ok(listed),
            Err(fault) => Some(fault),
        }
    } else {
        None
    };
    let Some(file) = places.file else { return Err(not_dashboard.unwrap_or(DiscoverError::Off)) };
    let own = local.filter(|_| file == Path::new(FILE)).map(|head| head.temp_dir.join(FILE_NAME));
    from_file(own.as_deref().unwrap_or(file)).await.map_err(|not_file| match not_dashboard {
        Some(not_dashboard) => {
            DiscoverError::Neither { dashboard: Box::new(not_dashboard), file: Box::new(not_file) }
        }
        None => not_file,
    })
}

async fn local_head(dashboard: &Url, addresses: &[IpAddr]) -> Option<LocalHead> {
    if !addresses.iter().copied().any(local_head::is_of_this_host) {
        return None;
    }
    let port = dashboard.port_or_known_default()?;
    let find = move || local_head::find(Path::new(local_head::PROC), port);
    tokio::task::spawn_blocking(find).await.ok().flatten()
}

/// The addresses of the upstream.
async fn resolve(dashboard: &Url) -> Vec<IpAddr> {
    let Some(host) = dashboard.host_str() else { return Vec::new() };
    let bare = host.trim_matches(['[', ']']);
    if let Ok(address) = bare.parse() {
        return vec![address];
    }
    let resolved = tokio::time::timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host((bare, 0))).await;
    resolved.ok().and_then(Result::ok).into_iter().flatten().map(|address| address.ip()).collect()
}

/// Which hosts are the head's. See the essay.
fn heads(
    dashboard: &Url,
    addresses: &[IpAddr],
    local: Option<&LocalHead>,
    targets: &[Target],
    of_head: &BTreeSet<String>,
) -> BTreeSet<String> {
    let listed: BTreeSet<&str> = targets.iter().filter_map(Target::host).collect();
    let said = hosts(of_head.iter().map(String::as_str));
    if said.iter().any(|host| listed.contains(&**host)) {
        return said;
    }
    let written = |address: IpAddr| match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    };
    let mut heads: BTreeSet<String> = addresses.iter().copied().map(written).collect();
    heads.extend(dashboard.host_str().map(str::to_owned));
    match local.and_then(|head| head.address.as_deref()) {
        Some(address) => {
            heads.insert(address.parse().map_or_else(|_| address.to_owned(), written));
        }
        None if addresses.iter().any(IpAddr::is_loopback) => {
            let is_own = |host: &&str| {
                let address = host.trim_matches(['[', ']']).parse();
                address.is_ok_and(|address: IpAddr| {
                    !address.is_loopback() && local_head::is_of_this_host(address)
                })
            };
            heads.extend(listed.into_iter().filter(is_own).map(str::to_owned));
        }
        None => {}
    }
    heads
}

/// Asks the dashboard.
async fn from_dashboard(
    client: &Client,
    dashboard: &Url,
    token: Option<&str>,
) -> Result<Listed, DiscoverError> {
    let (url, body) = ask(client, dashboard, PATH, token).await?;
    parse(&body, &url, Origin::Dashboard)
}

/// Reads Ray's file.
async fn from_file(path: &Path) -> Result<Listed, DiscoverError> {
    use tokio::io::AsyncReadExt;
    let unreadable = |problem: std::io::Error| match problem.kind() {
        std::io::ErrorKind::NotFound => DiscoverError::NoFile(path.to_owned()),
        _ => DiscoverError::UnreadableFile { path: path.to_owned(), problem: problem.to_string() },
    };
    let file = tokio::fs::File::open(path).await.map_err(unreadable)?;
    let mut body = Vec::new();
    file.take(BOUNDS.body_bytes_max as u64).read_to_end(&mut body).await.map_err(unreadable)?;
    parse(&body, &path.display().to_string(), Origin::File)
}

/// Whether Ray's dashboard answers there, and which Ray it is.
pub async fn version(
    client: &Client,
    dashboard: &Url,
    token: Option<&str>,
) -> Result<Version, DiscoverError> {
    let (url, body) = ask(client, dashboard, "/api/version", token).await?;
    serde_json::from_slice(&body).map_err(|error| DiscoverError::NotRay { url, problem: error.to_string() })
}

async fn ask(
    client: &Client,
    dashboard: &Url,
    path: &str,
    token: Option<&str>,
) -> Result<(String, Vec<u8>), DiscoverError> {
    let mut url = dashboard.clone();
    url.set_path(path);
    url.set_query(None);
    let host = url.host_str().unwrap_or_default();
    let shown = format!("http://{host}:{}{path}", url.port_or_known_default().unwrap_or(80));
    let answer = fetch::get(client, url, "application/json", token, BOUNDS).await;
    match answer.and_then(fetch::Answer::data) {
        Ok(body) => Ok((shown, body)),
        Err(fault) => Err(DiscoverError::Dashboard { url: shown, fault }),
    }
}

/// One group of Prometheus' `file_sd` format; labels are not needed.
#[derive(Deserialize)]
struct Group {
    #[serde(default)]
    targets: Vec<Value>,
}

/// A list as it was given.
#[derive(Debug)]
struct Listed {
    targets: Vec<Target>,
    bad: Vec<BadTarget>,
    origin: Origin,
}

impl Listed {
    fn ranked(self, heads: &BTreeSet<String>) -> Discovery {
        let mut targets = Targets::new(self.targets, heads);
        let room = TARGETS_MAX - targets.head.len();
        let left_out = targets.nodes.len().saturating_sub(room);
        targets.nodes.truncate(room);
        Discovery { targets, bad: self.bad, left_out, origin: self.origin }
    }
}

fn parse(body: &[u8], shown: &str, origin: Origin) -> Result<Listed, DiscoverError> {
    let named = || shown.to_owned();
    let groups: Vec<Group> = serde_json::from_slice(body)
        .map_err(|error| DiscoverError::NotAList { origin: named(), problem: error.to_string() })?;
    let (mut targets, mut bad, mut seen) = (Vec::new(), Vec::new(), HashSet::new());
    for given in groups.iter().flat_map(|group| &group.targets) {
        match read_entry(given) {
            Ok(target) if seen.insert(target.clone()) => targets.push(target),
            Ok(_) => {}
            Err(fault) => bad.push(fault),
        }
    }
    if targets.is_empty() {
        return Err(match bad.into_iter().next() {
            Some(bad) => DiscoverError::Target { origin: named(), bad },
            None => DiscoverError::NoTargets(named()),
        });
    }
    Ok(Listed { targets, bad, origin })
}

fn read_entry(given: &Value) -> Result<Target, BadTarget> {
    match given {
        Value::String(given) => Target::parse(given),
        other => Err(BadTarget { given: other.to_string(), problem: "it is not a text".to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::fetch::server;

    /// As Ray 2.60 writes it.
    const RAYS: &str = r#"[{"labels": {"job": "ray"}, "targets": ["192.0.2.2:8080", "192.0.2.2:44217", "192.0.2.2:44227"]}]"#;

    static NONE: BTreeSet<String> = BTreeSet::new();

    fn names(discovery: &Discovery) -> Vec<&str> {
        discovery.targets.all().map(|target| &*target.name).collect()
    }

    fn url(address: &str) -> Url {
        Url::parse(&format!("http://{address}/")).unwrap()
    }

    fn places<'a>(dashboard: &'a Url, file: &'a Path) -> Places<'a> {
        Places { dashboard, ask_dashboard: true, token: None, file: Some(file), of_head: &NONE }
    }

    /// A file of its own for one test; gone with the value.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str, content: &str) -> Scratch {
            let path = std::env::temp_dir().join(format!("rayguard-{}-{name}.json", std::process::id()));
            std::fs::write(&path, content).unwrap();
            Scratch(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    #[tokio::test]
    async fn the_dashboard_names_the_three_exporters() {
        let bytes = server::answer("200 OK", "application/json", RAYS);
        let nowhere = Path::new("/nowhere");
        let discovery = server::with(bytes, async |address| {
            discover(&fetch::client().unwrap(), places(&url(&address), nowhere)).await
        })
        .await
        .unwrap();
        assert_eq!(names(&discovery), ["192.0.2.2:8080", "192.0.2.2:44217", "192.0.2.2:44227"]);
        assert_eq!(discovery.origin, Origin::Dashboard);
        assert_eq!(discovery.targets.head[0].url.path(), "/metrics");
    }

    #[tokio::test]
    async fn a_dashboard_that_wants_a_token_gets_it_and_no_error_shows_it() {
        let seen = std::cell::RefCell::new(String::new());
        let bytes = server::answer("401 Unauthorized", "text/plain", "");
        let treat = async |request: &[u8], mut stream: tokio::net::TcpStream| {
            seen.replace(String::from_utf8_lossy(request).into_owned());
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, &bytes).await;
        };
        let fault = server::serve_requests(treat, async |address| {
            from_dashboard(&fetch::client().unwrap(), &url(&address), Some("s3cret")).await
        })
        .await
        .unwrap_err();
        assert!(seen.borrow().to_lowercase().contains("authorization: bearer s3cret"));
        let shown = format!("{fault} {fault:?}");
        assert!(shown.contains("token") && !shown.contains("s3cret"), "{shown}");
    }

    #[tokio::test]
    async fn the_file_is_what_is_left_when_the_dashboard_does_not_answer() {
        let file = Scratch::new("sd", RAYS);
        let discovery = server::with(Vec::new(), async |address| {
            discover(&fetch::client().unwrap(), places(&url(&address), &file.0)).await
        })
        .await
        .unwrap();
        assert_eq!((discovery.origin, discovery.targets.all().count()), (Origin::File, 3));
    }

    #[tokio::test]
    async fn neither_tells_both_reasons() {
        let bytes = server::answer("404 Not Found", "text/plain", "");
        let fault = server::with(bytes, async |address| {
            let nowhere = Path::new("/nowhere/sd.json");
            discover(&fetch::client().unwrap(), places(&url(&address), nowhere)).await
        })
        .await
        .unwrap_err()
        .to_string();
        assert!(fault.contains("404") && fault.contains("/nowhere/sd.json: no such file"), "{fault}");
    }

    #[tokio::test]
    async fn a_file_that_is_no_list_is_refused_by_its_fault() {
        for (name, content) in [("cut", &RAYS[..40]), ("object", "{}"), ("empty", "")] {
            let file = Scratch::new(name, content);
            assert!(matches!(from_file(&file.0).await, Err(DiscoverError::NotAList { .. })), "{content}");
        }
        let file = Scratch::new("none", r#"[{"targets": []}]"#);
        assert!(matches!(from_file(&file.0).await, Err(DiscoverError::NoTargets(..))));
        let file = Scratch::new("bad", r#"[{"targets": ["ho st:1"]}]"#);
        assert!(matches!(from_file(&file.0).await, Err(DiscoverError::Target { .. })));
        assert!(matches!(from_file(&std::env::temp_dir()).await, Err(DiscoverError::UnreadableFile { .. })));
    }

    #[tokio::test]
    async fn each_place_is_looked_at_only_where_it_is_switched_on() {
        let file = Scratch::new("switched", RAYS);
        let other = server::answer("200 OK", "application/json", r#"[{"targets": ["a:1"]}]"#);
        server::with(other, async |address| {
            let (client, dashboard) = (fetch::client().unwrap(), url(&address));
            let both = places(&dashboard, &file.0);
            let file_alone = discover(&client, Places { ask_dashboard: false, ..both }).await.unwrap();
            assert_eq!(file_alone.origin, Origin::File);
            let dashboard_alone = discover(&client, Places { file: None, ..both }).await.unwrap();
            assert_eq!(dashboard_alone.origin, Origin::Dashboard);
            let neither = discover(&client, Places { ask_dashboard: false, file: None, ..both }).await;
            assert_eq!(neither, Err(DiscoverError::Off));
        })
        .await;
    }

    fn parsed(body: &str) -> Discovery {
        parse(body.as_bytes(), "x", Origin::File).unwrap().ranked(&NONE)
    }

    #[test]
    fn an_entry_that_is_no_address_is_named_and_costs_no_other() {
        let found = parsed(r#"[{"targets": ["a:1", "", null, "a:-1", "a:0", 7, "b:2"]}, {"labels": {}}]"#);
        assert_eq!(names(&found), ["a:1", "b:2"]);
        let bad: Vec<String> = found.bad.iter().map(ToString::to_string).collect();
        assert_eq!(bad.len(), 5, "{bad:?}");
        assert!(bad[2].contains("`a:-1`"), "{bad:?}");
    }

    #[test]
    fn a_target_named_twice_is_asked_once_and_a_flood_costs_no_page_of_the_head() {
        let twice = parsed(r#"[{"targets": ["a:1", "a:1"]}, {"targets": ["a:1"]}]"#);
        assert_eq!(names(&twice), ["a:1"]);
        let mut many: Vec<String> = (0..TARGETS_MAX + 3).map(|node| format!("\"node{node}:80\"")).collect();
        many.extend(["\"head:8080\"".to_owned(), "\"head:44227\"".to_owned()]);
        let flood = parsed(&format!("[{{\"targets\": [{}]}}]", many.join(",")));
        let heads: Vec<&str> = flood.targets.head.iter().map(|target| &*target.name).collect();
        assert_eq!(heads, ["head:8080", "head:44227"]);
        assert_eq!((flood.targets.all().count(), flood.left_out), (TARGETS_MAX, 5));
    }

    #[tokio::test]
    async fn the_heads_address_is_the_upstreams_or_its_processes_unless_a_page_said_otherwise() {
        let list = ["10.0.0.1:1", "10.0.0.1:2", "10.0.0.2:1", "192.0.2.2:1"]
            .map(|name| Target::parse(name).unwrap());
        let of = async |upstream: &str, local: Option<&LocalHead>, said: &[&str]| {
            let said = said.iter().map(|name| (*name).to_owned()).collect();
            let upstream = url(upstream);
            let addresses = resolve(&upstream).await;
            Targets::new(list.to_vec(), &heads(&upstream, &addresses, local, &list, &said)).head
        };
        assert_eq!(of("10.0.0.2:8265", None, &[]).await, list[2..3]);
        assert_eq!(of("127.0.0.1:8265", None, &["10.0.0.2:1"]).await, list[2..3]);
        assert_eq!(of("192.0.2.9:8265", None, &[]).await, list[..2], "a guess");
        let local = LocalHead { temp_dir: "/data".into(), address: Some("192.0.2.2".to_owned()) };
        assert_eq!(of("127.0.0.1:8265", Some(&local), &[]).await, list[3..]);
        assert_eq!(of("127.0.0.1:8265", Some(&local), &["10.0.0.1:1"]).await, list[..2], "a tunnel");
    }

    #[tokio::test]
    async fn a_ray_is_known_by_its_version() {
        let body =
            r#"{"version": "4", "ray_version": "2.60.0", "ray_commit": "abc", "session_name": "session_x"}"#;
        let bytes = server::answer("200 OK", "application/json", body);
        let ask = async |address: String| version(&fetch::client().unwrap(), &url(&address), None).await;
        assert_eq!(server::with(bytes, ask).await.unwrap().ray_version, "2.60.0");
        let other = server::answer("200 OK", "application/json", r#"{"version": "4"}"#);
        let fault = server::with(other, ask).await.unwrap_err();
        assert!(matches!(fault, DiscoverError::NotRay { .. }), "{fault}");
    }
}
