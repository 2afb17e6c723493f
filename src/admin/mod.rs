//! The operator's listener: health, metrics, the JSON API and the page.
//!
//! It stands apart from the proxy, on an address of its own (loopback unless told otherwise),
//! and never on a proxied port: clients that come through the proxy must not reach what changes
//! rayguard. Reading needs no token; what changes anything needs the configured one, or,
//! where none is configured, a client on this machine ([`access`]). A flood at the proxy does
//! not reach it: it has its own bound on connections, and asks the controller's mutex a few times a
//! second at most.

pub mod access;
pub mod answer;
pub mod api;
pub mod clients;
pub mod discovery;
pub mod history;
pub mod listen;
pub mod openapi;
pub mod page;
pub mod schema;
pub mod state;

use crate::observe::notify::Notifier;
use crate::runtime::app::App;
use crate::runtime::reload::Reloader;
use access::Access;
use history::History;
use state::AdminState;
use std::sync::Arc;

/// Serves until the app's tasks close.
pub fn start(
    app: &Arc<App>,
    listener: listen::Listener,
    access: Access,
    notifier: Notifier,
    reloader: Reloader,
) {
    let admin = Arc::new(AdminState {
        app: Arc::clone(app),
        access,
        history: History::new(&app.settings().policy),
        notifier,
        reloader,
    });
    app.tasks.spawn_until_closed(record(Arc::clone(&admin)));
    app.tasks.spawn(listen::serve(listener, admin));
}

/// Takes a sample every second, for as long as it is polled.
async fn record(admin: Arc<AdminState>) {
    let mut every = tokio::time::interval(history::STEP);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        every.tick().await;
        let (app, counts) = (&admin.app, admin.app.proxy_reading().0);
        admin.history.take(&app.view(), &counts, app.clock.now(), app.clock.wall());
    }
}
