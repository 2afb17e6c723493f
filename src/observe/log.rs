//! The program's own log, on standard error.

use crate::config::settings::{Log, LogFormat};

/// Starts logging by these settings; a second call changes nothing.
pub fn start(settings: &Log) {
    let builder = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        // A closed standard error would make their report panic.
        .log_internal_errors(false)
        .with_max_level(settings.level)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(false);
    // Failing means that somebody else, a test perhaps, logs already.
    let _ = if settings.format == LogFormat::Json { builder.json().try_init() } else { builder.try_init() };
}
