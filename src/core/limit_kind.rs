//! Which of a class's or module's limits.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which of a class's or module's limits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LimitKind {
    /// Requests of the class under way at once.
    InFlight,
    /// Requests of the class per second.
    Rate,
    /// Requests in the module under way at once; `class` holds the module's name.
    ModuleInFlight,
}

impl LimitKind {
    /// As in the adjustment log.
    pub fn label(self) -> &'static str {
        match self {
            LimitKind::InFlight => "in_flight",
            LimitKind::Rate => "rate",
            LimitKind::ModuleInFlight => "module_in_flight",
        }
    }

    /// What follows its number, for people.
    pub fn unit(self) -> &'static str {
        match self {
            LimitKind::InFlight | LimitKind::ModuleInFlight => "",
            LimitKind::Rate => "/s",
        }
    }
}
