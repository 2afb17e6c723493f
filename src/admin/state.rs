//! What every answer of the operator's listener is made from.

use crate::admin::access::Access;
use crate::admin::history::History;
use crate::observe::notify::Notifier;
use crate::runtime::app::App;
use crate::runtime::reload::Reloader;
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
