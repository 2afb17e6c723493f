//! `rayguard health`: for a health check that has no shell and no HTTP client beside the binary.

use std::io::Write;

use crate::cli::client::{Client, ClientError, Reach};

/// Ask a running rayguard whether it takes requests.
///
/// It stays ready while Ray is down: rayguard then answers clients itself, and restarting it would not help. `rayguard
/// status` shows whether Ray answers. Exit codes: 0 ready, 1 draining or unreachable.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Where the admin API is.
    #[command(flatten)]
    pub reach: Reach,
}

/// Carries out the command.
pub async fn run(args: &Args, out: &mut dyn Write) -> Result<(), ClientError> {
    let said = Client::new(&args.reach)?.text("/readyz").await?;
    write!(out, "{said}")?;
    Ok(())
}
