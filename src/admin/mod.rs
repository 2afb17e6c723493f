//! The operator's listener: health, metrics, the JSON API and the page.
//!
//! It stands apart from the proxy, on an address of its own (loopback unless told otherwise),
//! and never on a proxied port: what changes rayguard must not be reachable by whoever comes
//! through it. Reading needs no token; what changes anything needs the configured one, or,
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

use crate::observe::notify::Notifier;
use crate::runtime::app::App;
use crate::runtime::reload::Reloader;
use access::Access;
use history::History;
use std::sync::Arc;

/// What every answer is made from.
#[derive(Debug)]
pub struct AdminState {
    /// Proxy and controller.
    pub app: Arc<App>,
    /// Who may ask, and who may change anything.
    pub access: Access,
    /// The last quarter of an hour.
    pub history: History,
    /// Whom alerts reach.
    pub notifier: Notifier,
    /// Who reads the configuration again.
    pub reloader: Reloader,
}

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
    app.tasks.spawn_until_closed(history::record(Arc::clone(&admin)));
    app.tasks.spawn(listen::serve(listener, admin));
}
