//! The limit table: every limit as it stands, in one immutable, versioned snapshot.
//!
//! The loop makes a new table and stores it in an `ArcSwap`; a request loads it once and
//! never sees half a change. Counters, clocks and queues live outside (see
//! [`crate::admission::controller`]), so a swap resets nothing.

use crate::policy::{ClassId, ModuleId, Policy, Treatment};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Every limit as it stands.
#[derive(Clone, PartialEq, Debug)]
pub struct LimitTable {
    /// Rises by one with every change.
    pub version: u64,
    /// Indexed by [`ClassId`].
    pub classes: Box<[ClassLimits]>,
    /// Indexed by [`ModuleId`].
    pub modules: Box<[ModuleLimits]>,
}

/// The limits of one class.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct ClassLimits {
    /// Limited, exempt or blocked.
    pub treatment: Treatment,
    /// Whether sheds are carried out or only counted.
    pub mode: Mode,
    /// Requests per second; `None`: no rate limit.
    pub rate: Option<f64>,
    /// Requests under way at once. The admission controller uses the whole part; below 1 it is one at a time, for this
    /// share of the time (`admission/pause`); at 0 nothing passes.
    pub in_flight: f64,
    /// Bytes per second; `None`: no limit.
    pub bytes_per_second: Option<f64>,
    /// How many requests may have been admitted since the start, all in all; `None`: any
    /// number. A running total needs no reset, so raising it hands out exactly the
    /// difference, however often the table is swapped.
    pub admitted_max: Option<u64>,
}

/// The limits of one module.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct ModuleLimits {
    /// Requests under way at once, all classes together.
    pub in_flight: f64,
}

/// What becomes of sheds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "ShedMode")]
pub enum Mode {
    /// Carried out.
    Enforce,
    /// Decided, counted and logged; the request goes through at once.
    Shadow,
}

impl LimitTable {
    /// The table a policy starts with: every limit at `initial`.
    pub fn initial(policy: &Policy) -> LimitTable {
        LimitTable {
            version: 1,
            classes: policy
                .classes
                .iter()
                .map(|class| ClassLimits {
                    treatment: class.treatment,
                    mode: Mode::Enforce,
                    rate: class.rate.map(|rate| rate.per_second.initial),
                    in_flight: class.in_flight.initial,
                    bytes_per_second: class.bytes_per_second,
                    admitted_max: None,
                })
                .collect(),
            modules: policy
                .modules
                .iter()
                .map(|module| ModuleLimits { in_flight: module.in_flight.initial })
                .collect(),
        }
    }

    /// These limits as another policy numbers them. What it has that this one lacks is where it starts.
    #[must_use]
    pub fn under(&self, own: &Policy, other: &Policy) -> LimitTable {
        let mut table = LimitTable { version: self.version, ..LimitTable::initial(other) };
        for (limits, class) in table.classes.iter_mut().zip(&other.classes) {
            let known = own.classes.iter().zip(&self.classes).find(|(known, _)| known.name == class.name);
            if let Some((_, known)) = known {
                *limits = *known;
            }
        }
        for (limits, module) in table.modules.iter_mut().zip(&other.modules) {
            let known = own.modules.iter().zip(&self.modules).find(|(known, _)| known.name == module.name);
            if let Some((_, known)) = known {
                *limits = *known;
            }
        }
        table
    }

    /// The limits of a class.
    pub fn class(&self, id: ClassId) -> &ClassLimits {
        &self.classes[id.index()]
    }

    /// The limits of a module.
    pub fn module(&self, id: ModuleId) -> &ModuleLimits {
        &self.modules[id.index()]
    }
}

/// A concurrency limit as the admission controller counts it: the whole part, 1 for anything above 0.
pub fn permits(limit: f64) -> u32 {
    if limit.is_nan() || limit <= 0.0 {
        0
    } else if limit >= f64::from(u32::MAX) {
        u32::MAX
    } else {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "bounded above and below"
        )]
        let whole = limit.floor() as u32;
        whole.max(1)
    }
}
