//! Which Ray is at `upstream`? Asked at the start, once a minute, and soon after the head was away.
//!
//! It decides whether the keys that Ray's handlers ignore are known (`core/request/query.rs`): a newer Ray may read
//! a key that this version of rayguard has never heard of, and two questions would then share one answer.
//! While the answer is not known, queries count as sent.

use crate::core::request::query;
use crate::observe::discover::{self, DiscoverError};
use crate::observe::fetch::{self, FetchError};
use crate::runtime::app::App;
use std::sync::Arc;
use std::time::Duration;
use url::Url;

/// How often it is looked whether the version has to be asked for.
const ROUND: Duration = Duration::from_secs(2);

/// How many of these rounds pass before it is asked for although nothing has happened: a minute.
const ROUNDS: u32 = 30;

/// And while the keys are not known.
const UNSETTLED_ROUNDS: u32 = 2;

/// Starts to ask, for as long as the app's tasks run.
pub fn start(app: &Arc<App>) {
    let Ok(client) = fetch::client() else { return };
    let app = Arc::clone(app);
    let tasks = app.tasks.clone();
    tasks.spawn_until_closed(async move {
        let mut last = String::new();
        loop {
            let Ok(dashboard) = Url::parse(&app.settings().upstream.url()) else { return };
            match discover::version(&client, &dashboard, app.rays_token()).await {
                Ok(version) => {
                    let known = query::holds_for(&version.ray_version);
                    if !known && version.ray_version != last {
                        tracing::warn!(
                            ray = version.ray_version,
                            "the query keys that this version of Ray reads are not known; every key counts"
                        );
                    }
                    app.on_reads_known(known);
                    last = version.ray_version;
                }
                Err(DiscoverError::Dashboard { fault: FetchError::Status { status: 401 | 403 }, .. }) => {
                    app.on_reads_known(false);
                }
                // A head that is slow to answer is the head that it was.
                Err(_) => {}
            }
            let settled = app.knows_reads();
            for _ in 0..if settled { ROUNDS } else { UNSETTLED_ROUNDS } {
                tokio::time::sleep(ROUND).await;
                if settled && !app.knows_reads() {
                    break; // the head was away
                }
            }
        }
    });
}
