//! `GET /api/v1/clients`: who asks most, in the last minutes.
//!
//! A client is an address and a digest of the credential seen with it. A caller that may change anything
//! (this machine, or the holder of the token) sees the address itself; any other caller sees its digest,
//! the `client` of the adjustment log. A credential is never more than a digest, keyed anew with every start.

use crate::admin::state::AdminState;
use crate::core::admission::history::Standing;
use crate::core::request::client_id::ClientId;
use crate::core::time::WallMs;
use crate::core::usage::{Client, Counts, Credential};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The heaviest clients of the last minutes.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Clients {
    /// Counted since this wall time.
    pub since: WallMs,
    /// Heaviest first, by what they cost Ray and how often they asked.
    pub clients: Vec<ClientRow>,
}

/// One client.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Client")]
pub struct ClientRow {
    /// Digest of its address, as in the adjustment log.
    pub client: String,
    /// The address it was last seen at; null for those who may not change anything.
    pub address: Option<String>,
    /// Short digest of its credential; `several` where an address shows more than are told apart.
    pub credential: Option<String>,
    /// Addresses the same credential came from, this one included; 0 without one.
    pub credential_addresses: u32,
    /// All classes together.
    #[serde(flatten)]
    pub counts: Counts,
    /// Seconds for which its requests and answers waited for its own line, taken together.
    #[serde(default)]
    pub client_wait_s: f64,
    /// What its past is worth under contention; null where `identity.history` is off.
    #[serde(default)]
    pub standing: Option<StandingView>,
    /// By class, most asked first.
    pub classes: Vec<ClientClass>,
}

/// What is known of a client's past.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Standing")]
pub struct StandingView {
    /// When it was first seen; null for a stranger.
    pub known_since: Option<WallMs>,
    /// Requests per second in its busiest ten minutes, faded.
    pub per_second: f64,
    /// Seconds of Ray's work that it used in these.
    pub habit_s: f64,
    /// What it may still use ahead of strangers, in the same seconds.
    pub left_s: f64,
    /// That is too little for a request such as it usually makes: for now it counts as a stranger.
    #[serde(default)]
    pub used_up: bool,
    /// About how many addresses have waited as strangers in the last minutes.
    pub strangers: u32,
    /// The same in words.
    pub says: String,
}

impl StandingView {
    /// What stands for this past.
    pub fn of(standing: Standing, strangers: u32) -> StandingView {
        match standing {
            Standing::Known { since, per_second, habit_s, left_s, used_up } => StandingView {
                known_since: Some(since),
                per_second,
                habit_s: rounded(habit_s),
                left_s: rounded(left_s),
                used_up,
                strangers,
                says: if used_up {
                    format!("known since {}; used up for now", day(since))
                } else {
                    format!("known since {}; {} by habit", day(since), pace(per_second))
                },
            },
            Standing::Stranger => StandingView {
                known_since: None,
                per_second: 0.0,
                habit_s: 0.0,
                left_s: 0.0,
                used_up: false,
                strangers,
                says: if strangers > 1 {
                    format!("stranger; one of {strangers}")
                } else {
                    "stranger".to_owned()
                },
            },
        }
    }
}

fn rounded(seconds: f64) -> f64 {
    (seconds * 1e3).round() / 1e3
}

/// `12 Nov`.
fn day(at: WallMs) -> String {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let text = at.rfc3339();
    let part =
        |place: std::ops::Range<usize>| text.get(place).and_then(|digits| digits.parse::<usize>().ok());
    let month = part(5..7).and_then(|month| MONTHS.get(month.wrapping_sub(1))).unwrap_or(&"");
    format!("{} {month}", part(8..10).unwrap_or(0))
}

/// `0.5/s`, `12/min` or `3/h`.
fn pace(per_second: f64) -> String {
    match per_second {
        fast if fast >= 9.95 => format!("{fast:.0}/s"),
        fast if fast >= 0.3 => format!("{fast:.1}/s"),
        slow if slow * 60.0 >= 0.95 => format!("{:.0}/min", slow * 60.0),
        rare => format!("{:.0}/h", (rare * 3600.0).max(1.0)),
    }
}

/// One client in one class.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ClientClass {
    /// The class.
    pub class: String,
    /// What it asked there.
    #[serde(flatten)]
    pub counts: Counts,
    /// Patterns of the routes it asked, three at most.
    pub routes: Vec<String>,
}

/// Work to the microsecond.
pub(super) fn rounded_work(counts: Counts) -> Counts {
    Counts { work_s: (counts.work_s * 1e6).round() / 1e6, ..counts }
}

/// Routes named per client and class.
const ROUTES_MAX: usize = 3;

/// The heaviest clients, at most `count`; with their addresses if `open`.
pub fn clients(admin: &AdminState, count: usize, open: bool) -> Clients {
    let proxy = admin.app.proxy();
    let (now, wall) = (admin.app.clock.now(), admin.app.clock.wall());
    let (clients, since) = proxy.usage().clients(count, now);
    let classes = &proxy.policy.classes;
    let strangers = proxy.admission.history().strangers(now);
    let standing = |client: &Client| {
        let credential = if let Credential::One(digest) = client.credential { Some(digest) } else { None };
        let client = proxy.admission.judge(ClientId { address: client.address, credential });
        StandingView::of(proxy.admission.history().standing(client, now), strangers)
    };
    let row = |client: &Client| ClientRow {
        client: format!("{:016x}", client.address),
        address: client.last_seen_at.filter(|_| open).map(|address| address.to_string()),
        credential: match client.credential {
            Credential::None => None,
            Credential::One(digest) => Some(format!("{:08x}", digest >> 32)),
            Credential::Many => Some("several".to_owned()),
        },
        credential_addresses: client.credential_addresses,
        counts: rounded_work(client.counts),
        client_wait_s: rounded(client.kept.as_secs_f64()),
        standing: proxy.admission.uses_history().then(|| standing(client)),
        classes: client
            .classes
            .iter()
            .map(|(class, counts, routes)| ClientClass {
                class: classes.get(class.index()).map_or_else(String::new, |class| class.name.to_string()),
                counts: rounded_work(*counts),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_past_is_said_in_a_few_words() {
        let known = |per_second| Standing::Known {
            since: WallMs::parse_rfc3339("2026-11-12T23:59:59Z").unwrap(),
            per_second,
            habit_s: 12.3456,
            left_s: 3.0,
            used_up: false,
        };
        let says = |standing| StandingView::of(standing, 214).says;
        assert_eq!(says(known(0.5)), "known since 12 Nov; 0.5/s by habit");
        assert_eq!(says(known(12.0)), "known since 12 Nov; 12/s by habit");
        assert_eq!(says(known(0.25)), "known since 12 Nov; 15/min by habit");
        assert_eq!(says(known(0.002)), "known since 12 Nov; 7/h by habit");
        let Standing::Known { since, per_second, habit_s, .. } = known(0.5) else { panic!() };
        let spent = Standing::Known { since, per_second, habit_s, left_s: 0.0, used_up: true };
        assert_eq!(says(spent), "known since 12 Nov; used up for now");
        assert_eq!(says(Standing::Stranger), "stranger; one of 214");
        assert_eq!(StandingView::of(Standing::Stranger, 0).says, "stranger");
    }
}
