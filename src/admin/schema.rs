//! What the API says and takes: the same types serve the listener, the command line and the
//! OpenAPI description.

use crate::core::admission::table::Mode as ShedMode;
use crate::core::control::guardrails::Guardrail;
use crate::core::controller::overrides::PinView;
use crate::core::controller::view::{LimitView, ModuleView, View};
use crate::core::event::{Adjustment, LimitKind, LoopKind, Mode, SignalSeen};
use crate::core::time::WallMs;
use crate::observe::adjustment_log::Entry;
use crate::runtime::ray_identity::RayView;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The longest reason or name that goes into the adjustment log, in characters.
pub(super) const WORDS_MAX: usize = 500;

/// What a replica may use of one shared limit.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Lease")]
pub struct LeaseView {
    /// The class, or the module.
    pub name: String,
    /// Which of its limits.
    pub limit: String,
    /// How much of it, in the limit's own unit.
    pub value: f64,
}

/// `GET /api/v1/state`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct State {
    /// The version of rayguard.
    pub version: String,
    /// Names the configuration in force.
    pub config: String,
    /// Wall time of this answer.
    pub time: WallMs,
    /// Seconds since the process began.
    pub uptime_s: f64,
    /// Whether changes need the bearer token.
    pub token_required: bool,
    /// The proxy's listeners.
    pub listeners: Vec<ListenerView>,
    /// Sections of the configuration on disk that only a restart puts into effect.
    #[serde(default)]
    pub awaits_restart: Vec<String>,
    /// What this replica may use of each limit it shares; empty for a replica that shares no limit.
    #[serde(default)]
    pub leases: Vec<LeaseView>,
    /// The Ray at `upstream`, and the profile it is taken by.
    #[serde(default)]
    pub ray: RayView,
    /// Everything the controller knows.
    #[serde(flatten)]
    pub view: View,
}

/// One listener of the proxy.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Listener")]
pub struct ListenerView {
    /// `dashboard`, `ray-client` or `serve`.
    pub kind: String,
    /// Where it listens.
    pub listen: String,
    /// Where it forwards to.
    pub upstream: String,
}

/// `GET /api/v1/limits`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Limits {
    /// Version of the limit table.
    pub table: u64,
    /// Whether all limits are held.
    pub frozen: bool,
    /// Every limit of every class.
    pub limits: Vec<LimitRow>,
    /// Ceilings of Ray's processes.
    pub modules: Vec<ModuleView>,
    /// What is held by hand.
    pub pins: Vec<PinView>,
}

/// One limit of one class.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct LimitRow {
    /// The class.
    pub class: String,
    /// Its module.
    pub module: String,
    /// `shadow`, whatever is pinned or frozen; else `manual` (a limit is pinned), `frozen` or `enforce`.
    pub mode: Mode,
    /// The limit itself.
    #[serde(flatten)]
    pub limit: LimitView,
}

/// One change of one limit. The adjustment log also holds what it was derived from.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Adjustment")]
pub struct AdjustmentRow {
    /// Wall time.
    pub time: WallMs,
    /// The class; the module where the limit is `module_in_flight`.
    pub class: String,
    /// Which limit.
    pub limit: LimitKind,
    /// The limit before.
    pub old: f64,
    /// The limit after.
    pub new: f64,
    /// The control law's name.
    pub law: String,
    /// Which loop.
    pub r#loop: LoopKind,
    /// Who decides.
    pub mode: Mode,
    /// The guardrail that held the law back, if one did.
    pub guardrail: Option<Guardrail>,
    /// What was read, worst first.
    pub signals: Vec<SignalSeen>,
    /// Why, as a sentence.
    pub reason: String,
}

impl AdjustmentRow {
    /// As shown.
    pub fn new(time: WallMs, adjustment: &Adjustment) -> AdjustmentRow {
        AdjustmentRow {
            time,
            class: adjustment.class.clone(),
            limit: adjustment.limit,
            old: adjustment.old,
            new: adjustment.new,
            law: adjustment.law.clone(),
            r#loop: adjustment.r#loop,
            mode: adjustment.mode,
            guardrail: adjustment.guardrail,
            signals: adjustment.signals.clone(),
            reason: adjustment.reason.clone(),
        }
    }
}

/// `GET /api/v1/adjustments`: newest last.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Adjustments {
    /// What was changed.
    pub adjustments: Vec<AdjustmentRow>,
    /// Wall time of the oldest event still at hand; what is older stands in the adjustment log.
    pub since: Option<WallMs>,
}

/// `GET /api/v1/events`: newest last, single refusals left out.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Events {
    /// What happened.
    pub events: Vec<EventRow>,
}

/// One event as in the adjustment log, without its sequence number.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Event")]
pub struct EventRow {
    /// Wall time.
    pub time: WallMs,
    /// What happened.
    #[serde(flatten)]
    pub event: crate::core::event::Event,
}

impl From<Entry> for EventRow {
    fn from(entry: Entry) -> EventRow {
        EventRow { time: entry.time, event: entry.event }
    }
}

/// `POST /api/v1/pin`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PinRequest {
    /// The class.
    pub class: String,
    /// Which limit.
    pub limit: LimitKind,
    /// The value, within the limit's bounds.
    pub value: f64,
    /// For how long: `30m`, `1h`, ...; 30 days at most.
    pub r#for: String,
    /// Reason, kept in the adjustment log; not blank.
    #[schemars(length(min = 1, max = WORDS_MAX))]
    pub why: String,
    /// Who, for the adjustment log; what the connection tells is added.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub who: String,
}

/// `POST /api/v1/unpin`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UnpinRequest {
    /// The class.
    pub class: String,
    /// Which limit.
    pub limit: LimitKind,
    /// Reason, kept in the adjustment log.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = WORDS_MAX))]
    pub why: String,
    /// Who, for the adjustment log; what the connection tells is added.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub who: String,
}

/// `POST /api/v1/freeze` and `/unfreeze`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FreezeRequest {
    /// Reason, kept in the adjustment log; not blank.
    #[schemars(length(min = 1, max = WORDS_MAX))]
    pub why: String,
    /// Who, for the adjustment log; what the connection tells is added.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub who: String,
}

/// `POST /api/v1/reload`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReloadRequest {
    /// Reason, kept in the adjustment log.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = WORDS_MAX))]
    pub why: String,
    /// Who, for the adjustment log; what the connection tells is added.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub who: String,
}

/// `POST /api/v1/mode`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModeRequest {
    /// What becomes of sheds.
    pub mode: ShedMode,
    /// The class; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// Reason, kept in the adjustment log; not blank.
    #[schemars(length(min = 1, max = WORDS_MAX))]
    pub why: String,
    /// Who, for the adjustment log; what the connection tells is added.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub who: String,
}

/// What came of a change.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Done {
    /// One sentence.
    pub done: String,
    /// Version of the limit table now in force.
    pub table: u64,
}

/// What came of `POST /api/v1/reload`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Reloaded {
    /// One sentence.
    pub done: String,
    /// Names the configuration now in force.
    pub config: String,
    /// What changed too, and takes a restart.
    pub takes_restart: Vec<String>,
}

/// `POST /api/v1/alerts/test`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Tested {
    /// Every receiver.
    pub receivers: Vec<ReceiverTest>,
}

/// What became of the test at one receiver.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ReceiverTest {
    /// Its kind and host; never the whole URL, which may be a secret.
    pub receiver: String,
    /// Why the test failed; null where it succeeded.
    pub problem: Option<String>,
}
