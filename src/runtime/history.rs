//! What is known of clients outlives the process: `identity.key`, `history` and `costs.json` in the state directory.
//!
//! `core/admission/history.rs` knows clients by keyed digests of addresses and credentials. For these to mean the same
//! after a restart the key must be kept. It stands in a file of its own that only the owner can read; anyone who
//! has both files can try addresses against them. Without `identity.history` neither is written, and the key
//! is drawn anew with every start.
//!
//! A past is counted in seconds of Ray's time as learnt. So what was learnt of each route is kept beside it: a
//! process that starts in the middle of a flood would otherwise learn from the flood what an allowance buys. The file
//! names the Ray that it was learnt of: once the head turns out to be another, it is forgotten.
//!
//! Read beside the start and written once a minute, if anything has changed, beside the file and renamed: by a thread
//! of its own, so that neither a slow disk nor a million clients hold up a request. Until it has been read nothing is
//! written.

use crate::core::request::catalogue::{ROUTES, Route};
use crate::core::request::classify::RouteId;
use crate::core::request::identify::Identifier;
use crate::runtime::app::App;
use crate::runtime::ray_identity::RayIdentity;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How often it is written.
const KEEP: Duration = Duration::from_secs(60);

/// The three files.
#[derive(Clone, Debug)]
pub struct HistoryFiles {
    key: PathBuf,
    records: PathBuf,
    costs: PathBuf,
    /// What an earlier process wrote was taken in, as far as it could be.
    is_read: Arc<AtomicBool>,
    /// Held by who writes.
    writing: Arc<Mutex<()>>,
}

/// What was learnt of routes, as it is kept.
#[derive(Serialize, Deserialize)]
struct LearntCosts {
    /// Of this Ray, where it was known.
    ray: Option<RayIdentity>,
    /// By method and pattern: the work of a route, the low quantile of its latency, and what it took in calm.
    seconds: BTreeMap<String, [f64; 3]>,
}

impl HistoryFiles {
    /// Those of a state directory.
    pub fn of(state_dir: &Path) -> HistoryFiles {
        let [key, records, costs] =
            ["identity.key", "history", "costs.json"].map(|name| state_dir.join(name));
        HistoryFiles { key, records, costs, is_read: Arc::default(), writing: Arc::default() }
    }

    /// The key of all digests: the one that was kept, or from now on this one.
    pub fn key(&self, fresh: [u64; 2]) -> [u64; 2] {
        match fs::read_to_string(&self.key).map(|text| read_key(&text)) {
            Ok(Some(kept)) => return kept,
            Ok(None) => {
                tracing::warn!(path = %self.key.display(), "not an identity key; clients start without a \
                    history");
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(path = %self.key.display(), %error, "cannot read the identity key; clients \
                    start without a history");
                return fresh;
            }
        }
        let [first, second] = fresh;
        if let Err(error) = write_private(&self.key, format!("{first:016x}{second:016x}\n").as_bytes()) {
            tracing::warn!(path = %self.key.display(), %error, "cannot save the identity key: clients' \
                history will not survive a restart");
        }
        fresh
    }

    /// Takes in what an earlier process knew: of routes now, of clients as soon as they have been read.
    pub fn load(&self, app: &Arc<App>) {
        self.load_costs(app);
        let (files, app) = (self.clone(), Arc::clone(app));
        let read = move || {
            files.load_records(&app);
            files.is_read.store(true, Ordering::Release);
        };
        if let Err(error) = std::thread::Builder::new().name("history".into()).spawn(read) {
            tracing::warn!(%error, "cannot read the history of clients; they start without one");
        }
    }

    fn load_costs(&self, app: &App) {
        if let Ok(text) = fs::read(&self.costs) {
            match serde_json::from_slice::<LearntCosts>(&text) {
                Ok(LearntCosts { ray, seconds }) => {
                    let learnt = routes().filter_map(|(id, name)| Some((id.0, *seconds.get(&name)?)));
                    app.recall_costs(ray, learnt);
                }
                Err(error) => {
                    tracing::warn!(path = %self.costs.display(), %error, "cannot read the learnt costs; \
                        learning them again");
                }
            }
        }
    }

    fn load_records(&self, app: &App) {
        let bytes = match fs::read(&self.records) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => {
                tracing::warn!(path = %self.records.display(), %error, "cannot read the history of clients");
                return;
            }
        };
        let (history, key) = (Arc::clone(app.proxy().admission.history()), app.key());
        match history.restore(&bytes, mark(key), app.clock.now()) {
            // No client can be found by a digest of the key before.
            Ok(_) if app.key() != key => history.clear(),
            Ok(records) => {
                tracing::info!(records, "restored the history of clients");
            }
            Err(error) => {
                tracing::warn!(path = %self.records.display(), %error, "the saved history of clients \
                    cannot be used; they start without one");
            }
        }
    }

    /// Writes what is known now, if it is not what is in the file.
    pub fn save(&self, app: &App) {
        let _one = self.writing.lock();
        if !self.is_read.load(Ordering::Acquire) || !app.proxy().admission.history().take_changed() {
            return;
        }
        let bytes = app.proxy().admission.history().to_bytes(mark(app.key()));
        let written = write_private(&self.records, &bytes).and_then(|()| self.save_costs(app));
        if let Err(error) = written {
            tracing::warn!(path = %self.records.display(), %error, "could not save the history of clients");
        }
    }

    fn save_costs(&self, app: &App) -> io::Result<()> {
        let names: BTreeMap<u16, String> = routes().map(|(id, name)| (id.0, name)).collect();
        let (ray, learnt) = app.learnt_costs();
        let learnt = learnt.into_iter().filter_map(|(route, cost)| Some((names.get(&route)?.clone(), cost)));
        let costs = LearntCosts { ray, seconds: learnt.collect() };
        write_private(&self.costs, &serde_json::to_vec(&costs).unwrap_or_default())
    }

    /// Writes it from now on, for as long as the app's tasks run.
    pub fn keep(&self, app: &Arc<App>) {
        let (files, app) = (self.clone(), Arc::clone(app));
        let tasks = app.tasks.clone();
        let mut writing: Option<std::thread::JoinHandle<()>> = None;
        tasks.every(KEEP, move || {
            let is_busy = writing.as_ref().is_some_and(|thread| !thread.is_finished());
            if is_busy || app.proxy().admission.history().is_empty() {
                return;
            }
            let (files, app) = (files.clone(), Arc::clone(&app));
            writing = std::thread::Builder::new().name("history".into()).spawn(move || files.save(&app)).ok();
        });
    }
}

/// Ray's own routes, as they are numbered and as they are named in a file.
fn routes() -> impl Iterator<Item = (RouteId, String)> {
    let name = |route: &Route| format!("{:?} {} {}", route.surface, route.method, route.path);
    ROUTES.iter().enumerate().map(move |(at, route)| (RouteId::of_ray(at), name(route)))
}

/// Stands for a key in a file: digests of another key are of no use.
fn mark(key: [u64; 2]) -> u64 {
    Identifier::new(key, Vec::new(), Vec::new()).named(b"rayguard history").address
}

fn read_key(text: &str) -> Option<[u64; 2]> {
    let text = text.trim_end();
    let half = |at: std::ops::Range<usize>| u64::from_str_radix(text.get(at)?, 16).ok();
    (text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .then(|| Some([half(0..16)?, half(16..32)?]))
        .flatten()
}

/// Writes beside the file and renames, so that a crash leaves the old or the new one whole.
fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    // One that was left behind may be another's to read.
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Overrides};
    use crate::core::request::profile::Fit;
    use crate::proxy::tasks::Tasks;
    use crate::runtime::ray_identity::Seen;
    use std::os::unix::fs::PermissionsExt;

    /// A rayguard whose files are in `dir`.
    fn app(dir: &Path) -> Arc<App> {
        let settings = config::parse("", "test", &Overrides::default()).unwrap();
        App::of_test(settings, dir, Tasks::default())
    }

    #[tokio::test]
    async fn what_routes_cost_is_forgotten_once_the_head_is_of_another_version() {
        let dir = std::env::temp_dir().join(format!("rayguard-costs-{}", std::process::id()));
        let files = HistoryFiles::of(&dir);
        let route = ROUTES.iter().position(|route| route.path == "/api/v0/tasks" && route.method == "GET");
        let route = RouteId::of_ray(route.unwrap()).0;
        let learnt = |app: &App| app.proxy().admission.costs().hold(route);
        let first = app(&dir);
        first.on_ray(&Seen::of_version("2.60.0"));
        first.proxy().admission.costs().learn(route, 7.0, 7.0, true);
        files.save_costs(&first).unwrap();
        for (version, kept) in [("2.60.0", 7.0), ("2.44.1", 0.0)] {
            let next = app(&dir);
            files.load_costs(&next);
            assert!(learnt(&next) > 0.0, "known from the first request on, before Ray has told its version");
            next.on_ray(&Seen::of_version(version));
            assert!((learnt(&next) - kept).abs() < 1e-12, "{version}: {}", learnt(&next));
        }
        // The same in one life, and while it is not known for a moment which Ray it is.
        let hidden = Seen { version: None, fit: Fit::Between, ..Seen::of_version("2.60.0") };
        for seen in [Seen::default(), hidden.clone(), Seen::of_version("2.60.0"), hidden] {
            first.on_ray(&seen);
            assert!(learnt(&first) > 0.0, "{seen:?}");
        }
        first.on_ray(&Seen::of_version("2.61.0"));
        assert!(learnt(&first) == 0.0, "of the same profile, and another");
        first.proxy().admission.costs().learn(route, 7.0, 7.0, true);
        first.on_ray(&Seen::of_version("2.44.1"));
        assert!(learnt(&first) == 0.0);
        let expected = first.proxy().admission.costs().get(route);
        assert!((expected - 0.586).abs() < 1e-12, "what its profile says: {expected}");
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_key_is_kept_and_read_by_its_owner_alone() {
        let dir = std::env::temp_dir().join(format!("rayguard-history-{}", std::process::id()));
        let files = HistoryFiles::of(&dir);
        assert_eq!(files.key([1, 2]), [1, 2]);
        assert_eq!(files.key([3, 4]), [1, 2]);
        assert_eq!(fs::metadata(&files.key).unwrap().permissions().mode() & 0o777, 0o600);
        for broken in ["", "12", &"g".repeat(32), &"1".repeat(33)] {
            fs::write(&files.key, broken).unwrap();
            assert_eq!(files.key([5, 6]), [5, 6], "{broken}");
            assert_eq!(files.key([7, 8]), [5, 6], "{broken}");
        }
        fs::remove_dir_all(dir).unwrap();
    }
}
