//! When to stop: SIGTERM or SIGINT.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that end the process. Made before the first request is taken: one that comes while the rest
/// starts is then acted on, and not what kills the process with requests in it.
#[derive(Debug)]
pub struct StopSignals {
    term: Signal,
    int: Signal,
}

impl StopSignals {
    /// Takes them over from the OS.
    ///
    /// # Errors
    /// When the handlers cannot be installed.
    pub fn install() -> std::io::Result<StopSignals> {
        Ok(StopSignals { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())? })
    }

    /// The name of the first one that comes, or that has come.
    pub async fn first(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.int.recv() => "SIGINT",
        }
    }
}
