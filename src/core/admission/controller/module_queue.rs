//! The requests that wait before one module: a queue for each of its classes.

use crate::admission::client_limits::ClientPermit;
use crate::admission::history::KEPT_FOR;
use crate::admission::queue::{Joined, Waiting};
use crate::admission::tiers::{TierPlace, Tiers};
use crate::policy::{Class, ClassId, Policy};
use crate::time::Time;
use std::sync::Arc;

/// The lines of one module.
#[derive(Debug)]
pub(super) struct ModuleQueue<W> {
    pub(super) classes: Vec<ClassQueue<W>>,
    pub(super) virtual_time: f64,
    /// Counts the rounds in which waiters are served.
    pub(super) round: u64,
}

/// The line of one class.
#[derive(Debug)]
pub(super) struct ClassQueue<W> {
    pub(super) id: ClassId,
    pub(super) name: Arc<str>,
    pub(super) fair: Tiers<Waiter<W>>,
    /// The class's own tag among the classes of its module, in work / weight.
    pub(super) tag: f64,
    /// The last round in which it was found without room.
    pub(super) full_in: u64,
    /// Until when strangers leave room for known requests.
    pub(super) kept_until: Time,
}

/// A waiting request.
#[derive(Debug)]
pub(super) struct Waiter<W> {
    pub(super) waiter: W,
    pub(super) of_client: Option<ClientPermit>,
}

impl<W> ModuleQueue<W> {
    pub(super) fn of(policy: &Policy, module: usize) -> ModuleQueue<W> {
        let classes = classes_of(policy, module).map(|(id, class)| {
            let (name, fair) = (Arc::clone(&class.name), Tiers::new(class.rate.is_none()));
            ClassQueue { id, name, fair, tag: 0.0, full_in: 0, kept_until: Time::ZERO }
        });
        ModuleQueue { classes: classes.collect(), virtual_time: 0.0, round: 0 }
    }

    /// Takes on what a new policy says of the module at this place; false, and as it was, where its classes are others
    /// or have other numbers, by which waiters are known.
    pub(super) fn reconfigure(&mut self, policy: &Policy, module: usize) -> bool {
        let own = self.classes.iter().map(|class| (class.id, &class.name));
        let is_same = own.eq(classes_of(policy, module).map(|(id, class)| (id, &class.name)));
        if is_same {
            for (own, (_, class)) in self.classes.iter_mut().zip(classes_of(policy, module)) {
                own.fair.heed_patience(class.rate.is_none());
            }
        }
        is_same
    }

    pub(super) fn is_empty(&self) -> bool {
        self.classes.iter().all(|class| class.fair.is_empty())
    }

    pub(super) fn class_mut(&mut self, id: ClassId) -> Option<&mut ClassQueue<W>> {
        self.classes.iter_mut().find(|class| class.id == id)
    }

    pub(super) fn join(
        &mut self,
        id: ClassId,
        request: Waiting<Waiter<W>>,
        len_max: u32,
    ) -> Joined<Waiter<W>, TierPlace> {
        let virtual_time = self.virtual_time;
        match self.class_mut(id) {
            Some(class) => {
                if class.fair.is_empty() {
                    class.tag = class.tag.max(virtual_time);
                }
                if request.claim.is_some() {
                    class.kept_until = request.since + KEPT_FOR;
                }
                class.fair.join(request, len_max)
            }
            None => Joined::Refused(request),
        }
    }
}

/// The classes of a module, with their numbers.
fn classes_of(policy: &Policy, module: usize) -> impl Iterator<Item = (ClassId, &Class)> {
    let numbered = (0..=u8::MAX).map(ClassId).zip(&policy.classes);
    numbered.filter(move |(_, class)| class.module.index() == module)
}
