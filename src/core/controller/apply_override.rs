//! What an operator orders, carried out.

use crate::admission::table::Mode;
use crate::controller::overrides::{Override, OverrideError, PIN_MAX, Pin};
use crate::controller::{Controller, Effects};
use crate::event::{Event, LimitKind, Mode as EffectiveMode, ModeChange};
use crate::policy::Bounds;
use crate::time::{Time, WallMs};

impl Controller {
    /// Carries out an order. `who` and `why` go into the adjustment log as they are.
    pub fn on_override(
        &mut self,
        order: &Override,
        who: &str,
        why: &str,
        now: Time,
        wall: WallMs,
    ) -> Result<Effects, OverrideError> {
        self.refuse_if_follower()?;
        let mut change = ModeChange {
            class: "all".into(),
            limit: None,
            from: self.overall(),
            to: EffectiveMode::Enforce,
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
                    to: EffectiveMode::Manual,
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
                    from: EffectiveMode::Manual,
                    to: self.who(at),
                    ..change
                };
            }
            Override::Freeze(frozen) => {
                // What is so already is no order, and no line in the log.
                if self.overrides.frozen == *frozen {
                    return Ok(Effects::default());
                }
                self.overrides.frozen = *frozen;
                change.to = self.overall();
            }
            Override::Mode { class, mode } => {
                let to = if *mode == Mode::Shadow { EffectiveMode::Shadow } else { EffectiveMode::Enforce };
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
        Ok(Effects { table, events: vec![Event::ModeChange(change)], ..Effects::default() })
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
                from: EffectiveMode::Manual,
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

    pub(super) fn bounds_of(&self, class: usize, limit: LimitKind) -> Option<Bounds> {
        let spec = &self.policy.classes[class];
        match limit {
            LimitKind::InFlight => Some(spec.in_flight),
            LimitKind::Rate => spec.rate.map(|rate| rate.per_second),
            LimitKind::ModuleInFlight => None,
        }
    }

    fn overall(&self) -> EffectiveMode {
        if self.overrides.frozen {
            EffectiveMode::Frozen
        } else if self.classes.iter().all(|loops| loops.mode == Mode::Shadow) {
            EffectiveMode::Shadow
        } else {
            EffectiveMode::Enforce
        }
    }
}
