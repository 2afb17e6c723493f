//! Where `log`, `explain` and `replay` read the adjustment log: in its files, or from a running rayguard.
//!
//! Files are read as they lie on disk: while rayguard runs, when it does not, and on a copy from
//! another machine. Over the admin API comes the newest part of the same lines.

use crate::cli::client::{Client, ClientError, Reach};
use crate::config::{self, Overrides, defaults};
use crate::core::time::WallMs;
use crate::observe::adjustment_log::{Follower, LogLine, Reader};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// The adjustment log to read.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct LogSource {
    /// Directory of the adjustment log, or one of its files. Default: `rayguard-state/adjustment-log` here, else
    /// the rayguard that runs on this host.
    #[arg(long, value_name = "PATH")]
    pub adjustment_log: Option<PathBuf>,
    /// Read the adjustment log that this configuration file names.
    #[arg(long, short, value_name = "FILE", conflicts_with = "adjustment_log")]
    pub config: Option<PathBuf>,
    /// Read it from the admin API of a running rayguard: `http://host:port` or `unix:/path`.
    #[arg(long, value_name = "URL", env = "RAYGUARD_ADDRESS", hide_env_values = true)]
    pub address: Option<String>,
}

/// Why the adjustment log cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Its files cannot be read.
    #[error(
        "cannot read the adjustment log at {}: {problem}; name it with --adjustment-log, --config or --address",
        path.display()
    )]
    Unreadable {
        /// Where.
        path: PathBuf,
        /// Why not.
        problem: io::Error,
    },
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// The running rayguard does not hand it over.
    #[error("{0}")]
    Client(#[from] ClientError),
    /// It is neither here nor there.
    #[error(
        "there is no adjustment log in {}, and {problem}; name it with --adjustment-log, --config or --address",
        path.display()
    )]
    Nowhere {
        /// Where files were looked for.
        path: PathBuf,
        /// Why the running one did not help.
        problem: ClientError,
    },
}

/// An adjustment log that is there.
#[derive(Debug)]
pub enum Place {
    /// In files.
    Files(PathBuf),
    /// At a running rayguard.
    Api(Box<Client>),
}

impl LogSource {
    /// Where it is. `--adjustment-log` goes before `--config`, that before `--address`.
    pub fn place(&self) -> Result<Place, SourceError> {
        if let Some(path) = &self.adjustment_log {
            return Ok(Place::Files(path.clone()));
        }
        if let Some(path) = &self.config {
            return Ok(Place::Files(config::load(path, &Overrides::default())?.adjustment_log.dir));
        }
        if let Some(address) = &self.address {
            return Ok(Place::Api(Box::new(Client::new(&Reach::at(address))?)));
        }
        let path = Path::new(defaults::STATE_DIR).join("adjustment-log");
        if path.exists() {
            // The directory may be anybody's: which log is read is said where it is not named. Not to say it stops nothing.
            let _ = writeln!(io::stderr(), "reading {}", path.display());
            return Ok(Place::Files(path));
        }
        let client = Client::new(&Reach::at(&format!("http://{}", defaults::admin())))?;
        match client.wait_for_text("/livez") {
            Ok(_) => {
                let _ = writeln!(io::stderr(), "reading the log of the rayguard at {}", defaults::admin());
                Ok(Place::Api(Box::new(client)))
            }
            Err(problem) => Err(SourceError::Nowhere { path, problem }),
        }
    }
}

impl Place {
    /// Its lines, oldest first; those before `since` may be left out.
    pub fn read(&self, since: Option<WallMs>) -> Result<Reader, SourceError> {
        match self {
            Place::Files(path) => Reader::open(path, since)
                .map_err(|problem| SourceError::Unreadable { path: path.clone(), problem }),
            Place::Api(client) => {
                let since = since.map_or_else(String::new, |since| format!("?since={}", since.0));
                Ok(Reader::of(client.wait_for_bytes(&format!("/api/v1/adjustment-log{since}"))?))
            }
        }
    }

    /// What an error while reading means.
    pub fn unreadable(&self, problem: io::Error) -> SourceError {
        let path = if let Place::Files(path) = self { path.clone() } else { PathBuf::from("the admin API") };
        SourceError::Unreadable { path, problem }
    }

    /// What is written from now on.
    #[must_use]
    pub fn follow(&self) -> Follow<'_> {
        match self {
            Place::Files(path) => Follow::Files(Follower::at_end(path)),
            Place::Api(_) => Follow::Api(self),
        }
    }
}

/// A log that is read as it grows.
#[derive(Debug)]
pub enum Follow<'a> {
    /// In files.
    Files(Follower),
    /// At a running rayguard: what is asked for again overlaps.
    Api(&'a Place),
}

impl Follow<'_> {
    /// Lines since the last call; from the API also some before `last`.
    pub fn poll(&mut self, last: WallMs, place: &Place) -> Result<Vec<LogLine>, SourceError> {
        match self {
            Follow::Files(follower) => follower.poll().map_err(|problem| place.unreadable(problem)),
            Follow::Api(place) => place
                .read(Some(WallMs(last.0.saturating_sub(1_000))))?
                .filter(|line| !matches!(line, Ok(LogLine::Unreadable { .. })))
                .map(|line| line.map_err(|problem| place.unreadable(problem)))
                .collect(),
        }
    }
}
