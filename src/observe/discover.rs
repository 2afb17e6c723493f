//! Where are this head's exporters, and is there a head at all?
//!
//! Ray picks its metrics port at random unless told otherwise, so it writes down where they
//! are: `/tmp/ray/prom_metrics_service_discovery.json`, a file for Prometheus' `file_sd`, and
//! the same body at `GET /api/prometheus/sd` of the dashboard. The file needs no network and
//! no token, and may be left over from a head that is gone; the endpoint is of now, and needs
//! the token where authentication is on. The endpoint is asked first; the file is what is left
//! when the head is too busy to answer, which is when targets are needed most.
//!
//! Every failure says what to do, for this is what an operator sees who starts rayguard beside
//! a head that is not there, or in another container.

use crate::observe::fetch::{self, Bounds, Fault};
use crate::observe::scrape::{BadTarget, Target};
use reqwest::Client;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::time::Duration;
use url::Url;

/// Where Ray writes its exporters down.
pub const FILE: &str = "/tmp/ray/prom_metrics_service_discovery.json";

/// The dashboard's path with the same content.
pub const PATH: &str = "/api/prometheus/sd";

/// What a look-up may cost.
pub const BOUNDS: Bounds = Bounds { timeout: Duration::from_secs(4), body_bytes_max: 4 << 20 };

/// More targets than this are cut off; the head's own come first in Ray's list.
pub const TARGETS_MAX: usize = crate::core::signal::series::TARGETS_MAX;

/// Targets, and where they are written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Discovery {
    /// In the order found, each once.
    pub targets: Vec<Target>,
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
pub enum DiscoverFault {
    /// The file is not there.
    #[error("{path}: no such file; is Ray's head on this host (and /tmp/ray shared with this container)?", path = .path.display())]
    NoFile {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The file cannot be read.
    #[error("{path}: {problem}; let this user read it, or list the targets in the configuration", path = .path.display())]
    UnreadableFile {
        /// Where it is.
        path: PathBuf,
        /// The system's words.
        problem: String,
    },
    /// The dashboard gives none.
    #[error("{url}: {fault}")]
    Dashboard {
        /// What was asked.
        url: String,
        /// What came of it.
        fault: Fault,
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
    #[error("{origin} names no targets; the head may still be starting")]
    NoTargets {
        /// What was read.
        origin: String,
    },
    /// A target that is none.
    #[error("{origin}: {bad}")]
    Target {
        /// What was read.
        origin: String,
        /// The target.
        bad: BadTarget,
    },
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
        dashboard: Box<DiscoverFault>,
        /// Why not from the file.
        file: Box<DiscoverFault>,
    },
}

/// Finds the exporters: from the dashboard, or else from the file.
///
/// # Errors
/// [`DiscoverFault::Neither`], with both reasons.
pub async fn discover(
    client: &Client,
    dashboard: &Url,
    token: Option<&str>,
    file: &Path,
) -> Result<Discovery, DiscoverFault> {
    let not_dashboard = match from_dashboard(client, dashboard, token).await {
        Ok(discovery) => return Ok(discovery),
        Err(fault) => Box::new(fault),
    };
    let not_file = |fault| DiscoverFault::Neither { dashboard: not_dashboard, file: Box::new(fault) };
    from_file(file).await.map_err(not_file)
}

/// Asks the dashboard.
///
/// # Errors
/// [`DiscoverFault`].
pub async fn from_dashboard(
    client: &Client,
    dashboard: &Url,
    token: Option<&str>,
) -> Result<Discovery, DiscoverFault> {
    let (url, body) = ask(client, dashboard, PATH, token).await?;
    parse(&body, &url, Origin::Dashboard)
}

/// Reads Ray's file.
///
/// # Errors
/// [`DiscoverFault`].
pub async fn from_file(path: &Path) -> Result<Discovery, DiscoverFault> {
    use tokio::io::AsyncReadExt;
    let unreadable = |problem: std::io::Error| match problem.kind() {
        std::io::ErrorKind::NotFound => DiscoverFault::NoFile { path: path.to_owned() },
        _ => DiscoverFault::UnreadableFile { path: path.to_owned(), problem: problem.to_string() },
    };
    let file = tokio::fs::File::open(path).await.map_err(unreadable)?;
    let mut body = Vec::new();
    file.take(BOUNDS.body_bytes_max as u64).read_to_end(&mut body).await.map_err(unreadable)?;
    parse(&body, &path.display().to_string(), Origin::File)
}

/// Whether Ray's dashboard answers there, and which Ray it is.
///
/// # Errors
/// [`DiscoverFault::Dashboard`], [`DiscoverFault::NotRay`].
pub async fn version(
    client: &Client,
    dashboard: &Url,
    token: Option<&str>,
) -> Result<Version, DiscoverFault> {
    let (url, body) = ask(client, dashboard, "/api/version", token).await?;
    serde_json::from_slice(&body).map_err(|error| DiscoverFault::NotRay { url, problem: error.to_string() })
}

async fn ask(
    client: &Client,
    dashboard: &Url,
    path: &str,
    token: Option<&str>,
) -> Result<(String, Vec<u8>), DiscoverFault> {
    let mut url = dashboard.clone();
    url.set_path(path);
    url.set_query(None);
    let host = url.host_str().unwrap_or_default();
    let shown = format!("http://{host}:{}{path}", url.port_or_known_default().unwrap_or(80));
    let answer = fetch::get(client, url, "application/json", token, BOUNDS).await;
    match answer.and_then(fetch::Answer::data) {
        Ok(body) => Ok((shown, body)),
        Err(fault) => Err(DiscoverFault::Dashboard { url: shown, fault }),
    }
}

/// One group of Prometheus' `file_sd` format; labels are not needed.
#[derive(Deserialize)]
struct Group {
    targets: Vec<String>,
}

fn parse(body: &[u8], shown: &str, origin: Origin) -> Result<Discovery, DiscoverFault> {
    let named = || shown.to_owned();
    let groups: Vec<Group> = serde_json::from_slice(body)
        .map_err(|error| DiscoverFault::NotAList { origin: named(), problem: error.to_string() })?;
    let mut targets: Vec<Target> = Vec::new();
    let mut left_out = 0;
    for given in groups.iter().flat_map(|group| &group.targets) {
        let target = Target::parse(given).map_err(|bad| DiscoverFault::Target { origin: named(), bad })?;
        if targets.contains(&target) {
            continue;
        }
        if targets.len() < TARGETS_MAX {
            targets.push(target);
        } else {
            left_out += 1;
        }
    }
    if targets.is_empty() {
        return Err(DiscoverFault::NoTargets { origin: named() });
    }
    Ok(Discovery { targets, left_out, origin })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::fetch::server;

    /// As Ray 2.60 writes it.
    const RAYS: &str = r#"[{"labels": {"job": "ray"}, "targets": ["192.0.2.2:8080", "192.0.2.2:44217", "192.0.2.2:44227"]}]"#;

    fn names(discovery: &Discovery) -> Vec<&str> {
        discovery.targets.iter().map(|target| &*target.name).collect()
    }

    fn url(address: &str) -> Url {
        Url::parse(&format!("http://{address}/")).unwrap()
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
            discover(&fetch::client().unwrap(), &url(&address), None, nowhere).await
        })
        .await
        .unwrap();
        assert_eq!(names(&discovery), ["192.0.2.2:8080", "192.0.2.2:44217", "192.0.2.2:44227"]);
        assert_eq!(discovery.origin, Origin::Dashboard);
        assert_eq!(discovery.targets[0].url.path(), "/metrics");
    }

    #[tokio::test]
    async fn a_dashboard_that_wants_a_token_gets_it_and_nobody_sees_it() {
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
            discover(&fetch::client().unwrap(), &url(&address), None, &file.0).await
        })
        .await
        .unwrap();
        assert_eq!((discovery.origin, discovery.targets.len()), (Origin::File, 3));
    }

    #[tokio::test]
    async fn neither_tells_both_reasons() {
        let bytes = server::answer("404 Not Found", "text/plain", "");
        let fault = server::with(bytes, async |address| {
            discover(&fetch::client().unwrap(), &url(&address), None, Path::new("/nowhere/sd.json")).await
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
            assert!(matches!(from_file(&file.0).await, Err(DiscoverFault::NotAList { .. })), "{content}");
        }
        let file = Scratch::new("none", r#"[{"targets": []}]"#);
        assert!(matches!(from_file(&file.0).await, Err(DiscoverFault::NoTargets { .. })));
        let file = Scratch::new("bad", r#"[{"targets": ["ho st:1"]}]"#);
        assert!(matches!(from_file(&file.0).await, Err(DiscoverFault::Target { .. })));
        assert!(matches!(from_file(&std::env::temp_dir()).await, Err(DiscoverFault::UnreadableFile { .. })));
    }

    #[test]
    fn a_target_named_twice_is_asked_once_and_a_flood_is_cut_off() {
        let twice =
            parse(br#"[{"targets": ["a:1", "a:1"]}, {"targets": ["a:1"]}]"#, "x", Origin::File).unwrap();
        assert_eq!(names(&twice), ["a:1"]);
        let many: Vec<String> = (0..TARGETS_MAX + 3).map(|port| format!("\"a:{}\"", port + 1)).collect();
        let flood = format!("[{{\"targets\": [{}]}}]", many.join(","));
        let flood = parse(flood.as_bytes(), "x", Origin::File).unwrap();
        assert_eq!((flood.targets.len(), flood.left_out), (TARGETS_MAX, 3));
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
        assert!(matches!(fault, DiscoverFault::NotRay { .. }), "{fault}");
    }
}
