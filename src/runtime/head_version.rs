//! Which Ray is at `upstream`? Asked at the start, once a minute, and soon after the head was away.
//!
//! It decides whether the keys that Ray's handlers ignore are known (`core/request/query.rs`): a newer Ray may read
//! a key that this version of rayguard has never heard of, and two questions would then share one answer.
//! While the answer is not known, queries count as sent.

use crate::core::request::query;
use crate::observe::discover::{self, DiscoverFault};
use crate::observe::fetch::{self, Fault};
use crate::runtime::guard::Guard;
use std::sync::Arc;
use std::time::Duration;
use url::Url;

/// How often it is looked whether the version has to be asked for.
const ROUND: Duration = Duration::from_secs(2);

/// How many of these rounds pass before it is asked for although nothing has happened: a minute.
const ROUNDS: u32 = 30;

/// And while the keys are not known.
const UNSETTLED_ROUNDS: u32 = 2;

/// Starts to ask, for as long as the guard's tasks run.
pub fn start(guard: &Arc<Guard>) {
    let Ok(client) = fetch::client() else { return };
    let guard = Arc::clone(guard);
    let tasks = guard.tasks.clone();
    tasks.spawn_until_closed(async move {
        let mut last = String::new();
        loop {
            let Ok(dashboard) = Url::parse(&guard.settings().upstream.url()) else { return };
            match discover::version(&client, &dashboard, guard.rays_token()).await {
                Ok(version) => {
                    let known = query::holds_for(&version.ray_version);
                    if !known && version.ray_version != last {
                        tracing::warn!(
                            ray = version.ray_version,
                            "the query keys that this version of Ray reads are not known; every key counts"
                        );
                    }
                    guard.on_reads_known(known);
                    last = version.ray_version;
                }
                Err(DiscoverFault::Dashboard { fault: Fault::Status { status: 401 | 403 }, .. }) => {
                    guard.on_reads_known(false);
                }
                // A head that is slow to answer is the head that it was.
                Err(_) => {}
            }
            let settled = guard.knows_reads();
            for _ in 0..if settled { ROUNDS } else { UNSETTLED_ROUNDS } {
                tokio::time::sleep(ROUND).await;
                if settled && !guard.knows_reads() {
                    break; // the head was away
                }
            }
        }
    });
}
