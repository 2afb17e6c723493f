//! When to stop: SIGTERM or SIGINT.

/// Resolves at the first SIGTERM or SIGINT, with its name.
///
/// # Errors
/// When the handlers cannot be installed.
pub async fn signalled() -> std::io::Result<&'static str> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    Ok(tokio::select! {
        _ = term.recv() => "SIGTERM",
        _ = int.recv() => "SIGINT",
    })
}
