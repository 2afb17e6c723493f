//! `GET /api/v1/clients`: who asks most, in the last minutes.
//!
//! A client is an address and a digest of the credential seen with it. The address itself is
//! told to whoever may steer (this machine, or the holder of the token); anybody else sees its
//! digest, the `client` of the record. A credential is never more than a digest, keyed anew with
//! every start.

use crate::admin::Desk;
use crate::core::census::{Client, Counts, Credential};
use crate::core::time::WallMs;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The heaviest clients of the last minutes.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Clients {
    /// Counted since this wall time.
    pub since: WallMs,
    /// Heaviest first, by what they cost Ray and how often they asked.
    pub clients: Vec<ClientRow>,
}

/// One client.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ClientRow {
    /// Digest of its address, as in the record.
    pub client: String,
    /// The address it was last seen at; absent for those who may not steer.
    pub address: Option<String>,
    /// Short digest of its credential; `several` where an address shows more than are told apart.
    pub credential: Option<String>,
    /// Addresses the same credential came from, this one included; 0 without one.
    pub credential_addresses: u32,
    /// All classes together.
    #[serde(flatten)]
    pub counts: CountsView,
    /// Seconds for which its requests and answers waited for its own line, taken together.
    #[serde(default)]
    pub client_wait_s: f64,
    /// By class, most asked first.
    pub classes: Vec<ClientClass>,
}

/// One client in one class.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ClientClass {
    /// The class.
    pub class: String,
    /// What it asked there.
    #[serde(flatten)]
    pub counts: CountsView,
    /// Patterns of the routes it asked, three at most.
    pub routes: Vec<String>,
}

/// What was asked, and what became of it.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct CountsView {
    /// Requests.
    pub asked: u64,
    /// Sent on to Ray.
    pub admitted: u64,
    /// Refused.
    pub shed: u64,
    /// Sent on, and would have been refused were the class not in shadow mode.
    pub would_shed: u64,
    /// Answered with another client's answer.
    pub shared: u64,
    /// Seconds of Ray's time, as learnt.
    pub work_s: f64,
}

impl From<&Counts> for CountsView {
    fn from(counts: &Counts) -> CountsView {
        let Counts { asked, admitted, shed, would_shed, shared, work_s } = *counts;
        CountsView { asked, admitted, shed, would_shed, shared, work_s: (work_s * 1e6).round() / 1e6 }
    }
}

/// Routes named per client and class.
const ROUTES_MAX: usize = 3;

/// The heaviest clients, at most `count`; with their addresses if `open`.
#[must_use]
pub fn clients(desk: &Desk, count: usize, open: bool) -> Clients {
    let proxy = desk.guard.proxy();
    let (now, wall) = (desk.guard.clock.now(), desk.guard.clock.wall());
    let (clients, since) = proxy.census().clients(count, now);
    let classes = &proxy.policy.classes;
    let row = |client: &Client| ClientRow {
        client: format!("{:016x}", client.address),
        address: client.last_seen_at.filter(|_| open).map(|address| address.to_string()),
        credential: match client.credential {
            Credential::None => None,
            Credential::One(digest) => Some(format!("{:08x}", digest >> 32)),
            Credential::Many => Some("several".to_owned()),
        },
        credential_addresses: client.credential_addresses,
        counts: CountsView::from(&client.counts),
        client_wait_s: (client.kept.as_secs_f64() * 1e3).round() / 1e3,
        classes: client
            .classes
            .iter()
            .map(|(class, counts, routes)| ClientClass {
                class: classes.get(class.index()).map_or_else(String::new, |class| class.name.to_string()),
                counts: CountsView::from(counts),
                routes: routes.iter().take(ROUTES_MAX).map(ToString::to_string).collect(),
            })
            .collect(),
    };
    Clients { since: earlier(wall, now.since(since)), clients: clients.iter().map(row).collect() }
}

/// So long before this wall time.
pub(super) fn earlier(wall: WallMs, ago: Duration) -> WallMs {
    WallMs(wall.0.saturating_sub(u64::try_from(ago.as_millis()).unwrap_or(u64::MAX)))
}
