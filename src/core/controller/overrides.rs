//! Overrides: what an operator may do by hand, and how the loop takes over again.
//!
//! A pin holds one limit at a value, with an expiry if one is given; a freeze holds all limits
//! where they are; shadow lets everything through and only counts what would have been refused.
//! Each is an event in the adjustment log, with who and why. When a pin ends, the limit starts from the
//! pinned value and its law from a clean memory, so that nothing jumps.

use crate::admission::table::{ClassLimits, Mode};
use crate::controller::Controller;
use crate::event::{Event, LimitKind, Mode as Who, ModeChange, number};
use crate::time::{Time, WallMs};
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
    frozen: bool,
    pins: Vec<Pin>,
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

impl Controller {
    /// Carries out an order. `who` and `why` go into the adjustment log as they are.
    pub fn on_override(
        &mut self,
        order: &Override,
        who: &str,
        why: &str,
        now: Time,
        wall: WallMs,
    ) -> Result<crate::controller::Effects, OverrideError> {
        self.refuse_if_follower()?;
        let mut change = ModeChange {
            class: "all".into(),
            limit: None,
            from: self.overall(),
            to: Who::Enforce,
            value: None,
            who: who.to_owned(),
            why: why.to_owned(),
            until: None,
        };
        match order {
            Override::Pin { class, limit, value, length } => {
                let at = self.class_named(class)?;
                let bounds = self.bounds_of(at, *limit).ok_or_else(|| OverrideError::NoSuchLimit {
                    class: class.clone(),
                    limit: limit.label(),
                })?;
                if !(value.is_finite() && *value >= bounds.min && *value <= bounds.max) {
                    return Err(OverrideError::OutOfBounds {
                        class: class.clone(),
                        limit: limit.label(),
                        value: *value,
                        min: bounds.min,
                        max: bounds.max,
                    });
                }
                let length = (*length).min(PIN_MAX);
                self.overrides.pins.retain(|pin| (pin.class, pin.limit) != (at, *limit));
                let pin = Pin {
                    class: at,
                    limit: *limit,
                    value: *value,
                    until: now + length,
                    who: who.to_owned(),
                    why: why.to_owned(),
                };
                self.overrides.pins.push(pin);
                let ms = u64::try_from(length.as_millis()).unwrap_or(u64::MAX);
                change = ModeChange {
                    class: class.clone(),
                    limit: Some(*limit),
                    from: self.who(at),
                    to: Who::Manual,
                    value: Some(*value),
                    until: Some(WallMs(wall.0.saturating_add(ms))),
                    ..change
                };
            }
            Override::Unpin { class, limit } => {
                let at = self.class_named(class)?;
                let place = self
                    .overrides
                    .pins
                    .iter()
                    .position(|pin| (pin.class, pin.limit) == (at, *limit))
                    .ok_or_else(|| OverrideError::NotPinned { class: class.clone(), limit: limit.label() })?;
                let pin = self.overrides.pins.remove(place);
                self.hand_over(&pin);
                change = ModeChange {
                    class: class.clone(),
                    limit: Some(*limit),
                    from: Who::Manual,
                    to: self.who(at),
                    ..change
                };
            }
            Override::Freeze(frozen) => {
                // What is so already is no order, and no line in the log.
                if self.overrides.frozen == *frozen {
                    return Ok(crate::controller::Effects::default());
                }
                self.overrides.frozen = *frozen;
                change.to = self.overall();
            }
            Override::Mode { class, mode } => {
                let to = if *mode == Mode::Shadow { Who::Shadow } else { Who::Enforce };
                if let Some(class) = class {
                    let at = self.class_named(class)?;
                    change = ModeChange { class: class.clone(), from: self.who(at), to, ..change };
                    self.classes[at].mode = *mode;
                } else {
                    change.to = to;
                    self.classes.iter_mut().for_each(|loops| loops.mode = *mode);
                }
            }
        }
        let table = self.renew_table();
        Ok(crate::controller::Effects {
            table,
            events: vec![Event::ModeChange(change)],
            ..crate::controller::Effects::default()
        })
    }

    /// Ends the pins whose time is up.
    pub(super) fn release_pins(&mut self, now: Time, wall: WallMs) -> Vec<Event> {
        let (ended, held): (Vec<Pin>, Vec<Pin>) =
            std::mem::take(&mut self.overrides.pins).into_iter().partition(|pin| pin.until <= now);
        self.overrides.pins = held;
        let events = ended.iter().map(|pin| {
            Event::ModeChange(ModeChange {
                class: self.policy.classes[pin.class].name.to_string(),
                limit: Some(pin.limit),
                from: Who::Manual,
                to: self.who(pin.class),
                value: None,
                who: pin.who.clone(),
                why: "the pin has expired".to_owned(),
                until: Some(wall),
            })
        });
        let events = events.collect();
        for pin in &ended {
            self.hand_over(pin);
        }
        events
    }

    /// The loop takes over from where the pin held the limit.
    fn hand_over(&mut self, pin: &Pin) {
        let loops = &mut self.classes[pin.class];
        for of in loops.all_mut().filter(|of| of.kind == pin.limit) {
            of.limit = of.regulator.guardrails.bounds.clamp(pin.value);
            of.regulator.transfer();
            of.trials.end();
        }
    }

    fn class_named(&self, name: &str) -> Result<usize, OverrideError> {
        self.policy.classes.iter().position(|class| *class.name == *name).ok_or_else(|| {
            if self.policy.modules.iter().any(|module| *module.name == *name) {
                OverrideError::Module { module: name.to_owned() }
            } else {
                OverrideError::UnknownClass { class: name.to_owned() }
            }
        })
    }

    pub(super) fn bounds_of(&self, class: usize, limit: LimitKind) -> Option<crate::policy::Bounds> {
        let spec = &self.policy.classes[class];
        match limit {
            LimitKind::InFlight => Some(spec.in_flight),
            LimitKind::Rate => spec.rate.map(|rate| rate.per_second),
            LimitKind::ModuleInFlight => None,
        }
    }

    fn overall(&self) -> Who {
        if self.overrides.frozen {
            Who::Frozen
        } else if self.classes.iter().all(|loops| loops.mode == Mode::Shadow) {
            Who::Shadow
        } else {
            Who::Enforce
        }
    }
}
