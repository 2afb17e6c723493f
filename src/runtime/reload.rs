//! New settings and certificates under live traffic: on SIGHUP, on an operator's word, and when
//! their files, or that of the API keys, have changed.
//!
//! The file is read every few seconds and compared by content. That needs no notification from
//! the file system, follows Kubernetes' symlink swaps, and cannot miss a change. A file that is
//! wrong changes nothing: the previous settings stay in force, every problem is in the log and
//! in the adjustment log, and an alert stands until the file is right.

use crate::config::{self, Overrides};
use crate::core::event::{ConfigChange, Event};
use crate::proxy::tls::Renew;
use crate::runtime::app::App;
use crate::runtime::watch;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(2);

/// Where settings come from.
#[derive(Clone, Debug)]
pub struct Source {
    /// The file.
    pub path: PathBuf,
    /// What the command line puts over it.
    pub overrides: Overrides,
}

/// Why nothing was reloaded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NotReloaded {
    /// The file is wrong, for these reasons; nothing has changed.
    Refused(Vec<String>),
    /// The file is not there any more; nothing has changed.
    Missing(String),
    /// It runs without a file.
    NoFile,
    /// The app's tasks have ended.
    Closing,
}

/// What could not be put into force without a restart, or why nothing was.
pub type ReloadResult = Result<Vec<&'static str>, NotReloaded>;

type Wish = (String, oneshot::Sender<ReloadResult>);

/// Asks for the file to be read again.
#[derive(Clone, Debug)]
pub struct Reloader(mpsc::Sender<Wish>);

impl Reloader {
    /// Reads the file again, whether it has changed or not; `asked` says in the adjustment log who wanted
    /// that.
    ///
    /// # Errors
    /// Why nothing has changed.
    pub async fn reload(&self, asked: String) -> ReloadResult {
        let (sender, answer) = oneshot::channel();
        self.0.send((asked, sender)).await.map_err(|_| NotReloaded::Closing)?;
        answer.await.unwrap_or(Err(NotReloaded::Closing))
    }
}

/// Starts looking, for as long as the app's tasks run: at the file, and at the
/// `certificates` of TLS, which have files of their own and are renewed by others. Without a file SIGHUP
/// renews the certificates alone.
pub fn start(app: &Arc<App>, source: Option<Source>, certificates: Vec<Arc<dyn Renew>>) -> Reloader {
    let app = Arc::clone(app);
    let tasks = app.tasks.clone();
    let (wishes, mut wished) = mpsc::channel::<Wish>(4);
    // Now and not in the task: what changes once requests are served is a change.
    let mut last = content(&app, source.as_ref());
    tasks.spawn_until_closed(async move {
        let mut hangups = match signal(SignalKind::hangup()) {
            Ok(hangups) => hangups,
            Err(error) => {
                tracing::error!(%error, "cannot handle SIGHUP; it will not reload the configuration");
                return;
            }
        };
        let mut every = tokio::time::interval(LOOK);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let (asked, wish) = tokio::select! {
                _ = every.tick() => (false, None),
                _ = hangups.recv() => (true, None),
                Some(wish) = wished.recv() => (true, Some(wish)),
            };
            renew(&app, &certificates);
            let (requester, answer) = wish.unzip();
            let Some(source) = &source else {
                let _ =
                    answer.map(|answer: oneshot::Sender<ReloadResult>| answer.send(Err(NotReloaded::NoFile)));
                continue;
            };
            let now = content(&app, Some(source));
            // A file that is gone or empty for a moment (a swap or a write under way) is not a change.
            let is_whole = now.as_ref().is_some_and(|(text, _)| !is_blank(text));
            if asked || (is_whole && now != last) {
                last = now;
                let outcome = reload(&app, source, requester);
                let _ = answer.map(|answer| answer.send(outcome));
            }
        }
    });
    Reloader(wishes)
}

/// The file, and the API keys it points to.
fn content(app: &App, source: Option<&Source>) -> Option<(Vec<u8>, Vec<u8>)> {
    let text = std::fs::read(&source?.path).ok()?;
    let keys = match &app.settings().identity.api_keys_file {
        Some(file) => std::fs::read(file).ok()?,
        None => Vec::new(),
    };
    Some((text, keys))
}

/// A problem without its drawing, for logs and alerts.
fn one_line(problem: &config::Problem) -> String {
    let remedy = problem.remedy.as_ref().map_or_else(String::new, |remedy| format!("; {remedy}"));
    format!("{}: {}{remedy}", problem.key, problem.message)
}

fn is_blank(text: &[u8]) -> bool {
    text.iter().all(u8::is_ascii_whitespace)
}

/// Takes over certificates that have changed.
fn renew(app: &App, certificates: &[Arc<dyn Renew>]) {
    for certificate in certificates {
        let file = certificate.file().display().to_string();
        let problems = match certificate.renew() {
            Ok(false) => continue,
            Ok(true) => Vec::new(),
            Err(problem) => vec![problem.to_string()],
        };
        if let Some(problem) = problems.first() {
            tracing::error!(file, "new certificate rejected; still using the previous one: {problem}");
        } else {
            tracing::info!(file, "certificate reloaded");
        }
        let accepted = problems.is_empty();
        let changes = accepted.then(|| "the certificate was renewed".to_owned()).into_iter().collect();
        let policy_version = app.policy_version();
        app.note(Event::ConfigChange(ConfigChange {
            accepted,
            policy_version,
            source: file,
            changes,
            problems,
        }));
    }
}

fn reload(app: &Arc<App>, source: &Source, requester: Option<String>) -> ReloadResult {
    let name = source.path.display().to_string();
    let before = app.settings();
    let loaded = config::load(&source.path, &source.overrides);
    let is_missing = matches!(
        &loaded,
        Err(config::Error::Unreadable { error, .. }) if error.kind() == std::io::ErrorKind::NotFound
    );
    let outcome = match loaded {
        // Valid, and never meant: an operator who wants every default back while traffic flows writes one.
        Ok(_) if std::fs::read(&source.path).is_ok_and(|text| is_blank(&text)) => Err(vec![format!(
            "{name} is empty, as a file is while it is being written; to go back to the defaults, write \
                `mode = \"enforce\"` into it"
        )]),
        Ok(settings) => {
            let settings = Arc::new(settings);
            let changes = vec![format!("configuration {} follows {}", settings.version, before.version)];
            match app.reload(&settings) {
                Ok(left) => Ok((changes, left)),
                Err(faults) => Err(faults.iter().map(|fault| fault.problem.to_string()).collect::<Vec<_>>()),
            }
        }
        Err(config::Error::Wrong(problems)) => Err(problems.list().iter().map(one_line).collect()),
        Err(config::Error::Unreadable { path, .. }) if is_missing => {
            Err(vec![format!("{} does not exist; restore it", path.display())])
        }
        Err(config::Error::Unreadable { path, error }) => {
            Err(vec![format!("{} cannot be read ({error})", path.display())])
        }
        Err(error) => Err(vec![error.to_string()]),
    };
    let mut change = ConfigChange {
        accepted: outcome.is_ok(),
        policy_version: 0,
        source: requester.map_or_else(|| name.clone(), |requester| format!("{name}, {requester}")),
        changes: Vec::new(),
        problems: Vec::new(),
    };
    let outcome = match outcome {
        Ok((mut changes, left)) => {
            changes.extend(left.iter().map(|part| format!("`{part}` changes at the next restart")));
            if left.is_empty() {
                tracing::info!(file = name, "configuration reloaded");
            } else {
                tracing::warn!(
                    file = name,
                    "configuration reloaded; at the next restart: {}",
                    left.join(", ")
                );
            }
            change.changes = changes;
            app.on_config(None);
            watch::start(app);
            Ok(left)
        }
        Err(problems) => {
            for problem in &problems {
                tracing::error!(
                    file = name,
                    "new configuration rejected; still using the previous one: {problem}"
                );
            }
            app.on_config(problems.first().map(String::as_str));
            change.problems.clone_from(&problems);
            Err(if is_missing { NotReloaded::Missing(name) } else { NotReloaded::Refused(problems) })
        }
    };
    change.policy_version = app.policy_version();
    app.note(Event::ConfigChange(change));
    outcome
}
