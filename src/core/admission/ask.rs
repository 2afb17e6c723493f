//! What is asked of the admission controller.

use crate::policy::ClassId;
use crate::request::client_id::ClientId;

/// What is asked of the admission controller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ask {
    /// The request's class.
    pub class: ClassId,
    /// Its route, the key of its learnt cost.
    pub route: u16,
    /// The client that asks.
    pub client: ClientId,
}
