//! The operator's listener: health, metrics, the JSON API and the page.
//!
//! It stands apart from the proxy, on an address of its own (loopback unless told otherwise),
//! and never on a proxied port: what steers rayguard must not be reachable by whoever comes
//! through it. Reading needs no token; what changes anything needs the configured one, or,
//! where none is configured, a client on this machine ([`access`]). A flood at the proxy does
//! not reach it: it has its own bound on connections, and asks the engine's mutex a few times a
//! second at most.

pub mod access;
pub mod answer;
pub mod api;
pub mod clients;
pub mod discovery;
pub mod history;
pub mod listen;
pub mod page;
pub mod schema;

use crate::observe::notify::Notifier;
use crate::runtime::guard::Guard;
use crate::runtime::reload::Reloader;
use access::Access;
use history::History;
use std::sync::Arc;

/// What every answer is made from.
#[derive(Debug)]
pub struct Desk {
    /// Proxy and engine.
    pub guard: Arc<Guard>,
    /// Who may ask, and who may steer.
    pub access: Access,
    /// The last quarter of an hour.
    pub history: History,
    /// Whom alerts reach.
    pub notifier: Notifier,
    /// Who reads the configuration again.
    pub reloader: Reloader,
}

/// Serves until the guard's tasks close.
pub fn start(
    guard: &Arc<Guard>,
    listener: listen::Listener,
    access: Access,
    notifier: Notifier,
    reloader: Reloader,
) {
    let desk = Arc::new(Desk {
        guard: Arc::clone(guard),
        access,
        history: History::new(&guard.settings().policy),
        notifier,
        reloader,
    });
    guard.tasks.spawn_until_closed(history::record(Arc::clone(&desk)));
    guard.tasks.spawn(listen::serve(listener, desk));
}
