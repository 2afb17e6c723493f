//! Overrides: what an operator may do by hand, and how the loop takes over again.
//!
//! A pin holds one limit at a value, with an expiry if one is given; a freeze holds all limits
//! where they are; shadow lets everything through and only counts what would have been refused.
//! Each is an event in the adjustment log, with who and why. When a pin ends, the limit starts from the
//! pinned value and its law from a clean memory, so that nothing jumps.

use crate::admission::table::{ClassLimits, Mode};
use crate::event::{LimitKind, number};
use crate::time::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The longest a pin may last, so that none is forgotten for ever.
pub const PIN_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// What an operator may ask for.
#[derive(Clone, PartialEq, Debug)]
pub enum Override {
    /// Hold one limit at a value.
    Pin {
        /// The class's name.
        class: String,
        /// Which limit.
        limit: LimitKind,
        /// The value, within the limit's bounds.
        value: f64,
        /// For how long.
        length: Duration,
    },
    /// Give a limit back to the loop.
    Unpin {
        /// The class's name.
        class: String,
        /// Which limit.
        limit: LimitKind,
    },
    /// Hold all limits where they are, or let them move again.
    Freeze(bool),
    /// Count sheds without carrying them out (`Shadow`), or carry them out (`Enforce`), for one
    /// class or for all.
    Mode {
        /// The class's name, or all.
        class: Option<String>,
        /// What becomes of sheds.
        mode: Mode,
    },
}

/// Why an override cannot be carried out.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum OverrideError {
    /// There is no such class.
    #[error("there is no class `{class}`")]
    UnknownClass {
        /// The name.
        class: String,
    },
    /// That is a module.
    #[error("`{module}` is a module: limits of classes can be pinned, those of modules cannot")]
    Module {
        /// The name.
        module: String,
    },
    /// The class has no such limit.
    #[error("class `{class}` has no limit `{limit}` that could be pinned")]
    NoSuchLimit {
        /// The class.
        class: String,
        /// The limit.
        limit: &'static str,
    },
    /// The value lies outside the bounds.
    #[error("{} is outside the bounds {} to {} of {class} {limit}", number(*value), number(*min), number(*max))]
    OutOfBounds {
        /// The class.
        class: String,
        /// The limit.
        limit: &'static str,
        /// The value.
        value: f64,
        /// The lower bound.
        min: f64,
        /// The upper bound.
        max: f64,
    },
    /// Another replica decides.
    #[error("{leader} is the leader and decides for all replicas")]
    Follows {
        /// Who leads.
        leader: String,
    },
    /// Nothing is pinned there.
    #[error("{class} {limit} is not pinned")]
    NotPinned {
        /// The class.
        class: String,
        /// The limit.
        limit: &'static str,
    },
}

/// What is held by hand.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    pub(super) frozen: bool,
    pub(super) pins: Vec<Pin>,
}

/// One pinned limit.
#[derive(Clone, PartialEq, Debug)]
pub struct Pin {
    /// The class's place.
    pub class: usize,
    /// Which limit.
    pub limit: LimitKind,
    /// Its value.
    pub value: f64,
    /// When it ends.
    pub until: Time,
    /// Who said so.
    pub who: String,
    /// Why they said so.
    pub why: String,
}

/// One limit held by hand.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Pin")]
pub struct PinView {
    /// The class's name.
    pub class: String,
    /// Which limit.
    pub limit: LimitKind,
    /// Its value.
    pub value: f64,
    /// Seconds until it ends by itself.
    pub left_s: f64,
    /// Who said so.
    pub who: String,
    /// Why they said so.
    pub why: String,
}

impl Overrides {
    /// Whether all limits are held.
    #[must_use]
    pub fn frozen(&self) -> bool {
        self.frozen
    }

    /// What is pinned.
    #[must_use]
    pub fn pins(&self) -> &[Pin] {
        &self.pins
    }

    /// The same overrides for another policy; pins of classes that are gone end.
    pub(super) fn under(&self, place: impl Fn(usize) -> Option<usize>) -> Overrides {
        let pins = self.pins.iter().filter_map(|pin| Some(Pin { class: place(pin.class)?, ..pin.clone() }));
        Overrides { frozen: self.frozen, pins: pins.collect() }
    }

    /// The overrides of the leader.
    pub(super) fn follow(&mut self, frozen: bool, pins: Vec<Pin>) {
        (self.frozen, self.pins) = (frozen, pins);
    }

    pub(super) fn apply(&self, class: usize, limits: &mut ClassLimits) {
        for pin in self.pins.iter().filter(|pin| pin.class == class) {
            match pin.limit {
                LimitKind::Rate => limits.rate = Some(pin.value),
                LimitKind::InFlight | LimitKind::ModuleInFlight => limits.in_flight = pin.value,
            }
        }
    }
}
