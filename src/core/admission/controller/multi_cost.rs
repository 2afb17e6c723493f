//! Requests that are worth several, and how much a class has left.
//!
//! A client that asks on behalf of others (see `proxy/ratelimit`) may say that one request counts as
//! many: `hits`. They are the price in *rate*. An exchange takes one place in flight whatever it
//! is worth, since a place is a thing of the head's and a hit is a thing of the operator's.
//!
//! GCRA takes several cells at once or none. The admission controller takes the first cell itself
//! ([`AdmissionController::decide`]), so the price is looked at before ([`AdmissionController::lacks`]) and the rest of it is
//! paid after ([`AdmissionController::pay`]); a request that came in between has been
//! served, and the payer is not.
//! More hits than a burst has room for never pass.

use super::AdmissionController;
use crate::admission::controller::{Ask, Permit};
use crate::admission::meter::Reason;
use crate::admission::table::{LimitTable, permits};
use crate::policy::ClassId;
use crate::request::client_id::ClientId;
use crate::time::Time;
use std::num::NonZeroU32;
use std::time::Duration;

/// How much a class has left for a client.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Left {
    /// Requests per second and how many may come at once, if the class has a rate.
    pub rate: Option<(f64, u32)>,
    /// Places in flight, all in all.
    pub places: u32,
    /// Requests that would be let in if they came now, by every limit of class and client.
    pub requests: u32,
    /// How long until the rate has all in hand that it ever has; zero without one.
    pub whole: Duration,
}

impl<W> AdmissionController<W> {
    /// Which rate has less than `hits` in hand, and for how long.
    pub fn lacks(&self, ask: Ask, hits: u32, now: Time) -> Option<(Reason, Duration)> {
        let class = self.class(ask.class);
        let client = self.shared_credential.judge(ask.client);
        let own = class
            .client_limits
            .as_ref()
            .and_then(|(_, client_limits)| client_limits.would_refuse(client, hits, now));
        own.or_else(|| {
            let (_, rate) = class.rate.as_ref()?;
            let wait = rate.wait(hits.saturating_sub(1), now);
            (!wait.is_zero()).then_some((Reason::ClassRate, wait))
        })
    }

    /// Pays what a permit is worth beyond its first hit.
    ///
    /// # Errors
    /// The rate that has not so much in hand; then nothing is paid by it.
    pub fn pay(&self, permit: &Permit, more: NonZeroU32, now: Time) -> Result<(), (Reason, Duration)> {
        let class = self.class(permit.ask.class);
        if let Some((_, client_limits)) = &class.client_limits
            && !client_limits.take_all(permit.ask.client, more, now)
        {
            let wait = client_limits
                .would_refuse(permit.ask.client, more.get(), now)
                .map_or(Duration::ZERO, |o| o.1);
            return Err((Reason::ClientRate, wait));
        }
        match &class.rate {
            Some((_, rate)) if !rate.take_all(more, now) => {
                Err((Reason::ClassRate, rate.wait(more.get() - 1, now)))
            }
            _ => Ok(()),
        }
    }

    /// How much a class has left for a client. The module's ceiling is everybody's, and says nothing
    /// about one class: it is not looked at.
    pub fn left(&self, table: &LimitTable, id: ClassId, client: ClientId, now: Time) -> Left {
        let (class, limits) = (self.class(id), table.class(id));
        let places = permits(limits.in_flight);
        let mut requests = places.saturating_sub(class.tally.in_flight.count());
        let mut whole = Duration::ZERO;
        if let Some((_, rate)) = &class.rate {
            let (cells, until) = rate.left(now);
            (requests, whole) = (requests.min(cells), until);
        }
        if let Some((_, client_limits)) = &class.client_limits {
            requests = requests.min(client_limits.left(self.shared_credential.judge(client), now));
        }
        if let Some(max) = limits.admitted_max {
            let used = self.allowance_used(id);
            requests = requests.min(u32::try_from(max.saturating_sub(used)).unwrap_or(u32::MAX));
        }
        let rate = class.rate.as_ref().zip(limits.rate).map(|((burst, _), rate)| (rate, *burst));
        Left { rate, places, requests, whole }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::controller::{Decision, Grant};
    use crate::admission::meter::Outcome;
    use crate::policy::{Bounds, PerClientLimits, Policy, RateBounds, plain};
    use proptest::prelude::*;

    const CLIENT: ClientId = ClientId { address: 8, credential: None };
    const ASK: Ask = Ask { class: ClassId(0), route: 0, client: CLIENT };

    fn rated(
        per_second: f64,
        burst: u32,
        per_client: PerClientLimits,
    ) -> (Policy, LimitTable, AdmissionController<()>) {
        let mut class = plain::class("submit", 100.0);
        class.rate = Some(RateBounds { per_second: Bounds::fixed(per_second), burst });
        class.per_client = per_client;
        let policy = plain::policy(vec![class], 100.0);
        let table = LimitTable::initial(&policy);
        let admission = AdmissionController::new(&policy, &table, Time::ZERO);
        (policy, table, admission)
    }

    fn admit(admission: &AdmissionController<()>, table: &LimitTable, now: Time) -> Option<Permit> {
        match admission.decide(table, ASK, now, || (), &mut |(), _: Grant| {}) {
            Decision::Admit(permit) => Some(permit),
            _ => None,
        }
    }

    #[test]
    fn what_is_left_is_the_least_of_all_limits() {
        let own = PerClientLimits { rate: Some((1.0, 6)), in_flight: Some(5) };
        let (_, mut table, admission) = rated(10.0, 8, own);
        let left = |table: &LimitTable, client| admission.left(table, ASK.class, client, Time::ZERO).requests;
        assert_eq!(left(&table, CLIENT), 5, "the client's own places");
        table.classes[0].in_flight = 3.0;
        assert_eq!(left(&table, CLIENT), 3, "the class's places");
        table.classes[0].admitted_max = Some(2);
        assert_eq!(left(&table, CLIENT), 2, "the work the head may have before it");
        let permit = admit(&admission, &table, Time::ZERO).unwrap();
        let now = admission.left(&table, ASK.class, CLIENT, Time::ZERO);
        assert_eq!((now.requests, now.rate, now.places), (1, Some((10.0, 8)), 3));
        assert!((now.whole.as_secs_f64() - 0.1).abs() < 1e-3, "{now:?}");
        admission.finish(&table, permit, Outcome::Unseen, Time::ZERO, &mut |(), _| {});
        let counts = admission.counts(ASK.class);
        assert_eq!(
            (counts.left, counts.finished()),
            (0, 0),
            "an exchange that ended unseen counts as nothing"
        );
    }

    #[test]
    fn the_rest_of_a_price_is_paid_whole_or_not_at_all() {
        let (_, table, admission) = rated(1.0, 8, PerClientLimits::default());
        let permit = admit(&admission, &table, Time::ZERO).unwrap();
        assert_eq!(admission.pay(&permit, NonZeroU32::new(5).unwrap(), Time::ZERO), Ok(()));
        let (reason, wait) = admission.pay(&permit, NonZeroU32::new(5).unwrap(), Time::ZERO).unwrap_err();
        assert_eq!((reason, wait.as_millis()), (Reason::ClassRate, 3000), "two are left of eight");
        assert_eq!(admission.lacks(ASK, 2, Time::ZERO), None);
        assert_eq!(admission.lacks(ASK, 3, Time::ZERO).unwrap().0, Reason::ClassRate);
        assert!(
            admission.lacks(ASK, 9, Time::from_secs_f64(1e3)).is_some(),
            "more than a burst never passes"
        );
    }

    proptest! {
        /// Hits let in over any time are within the integral of the rate and the burst.
        #[test]
        fn hits_never_exceed_the_rate_plus_the_burst(
            asks in prop::collection::vec((1u32..12, 0u64..400), 1..80),
        ) {
            let (_, table, admission) = rated(20.0, 10, PerClientLimits::default());
            let (mut now, mut paid) = (Time::ZERO, 0);
            for (hits, later_ms) in asks {
                now = now + Duration::from_millis(later_ms);
                if admission.lacks(ASK, hits, now).is_none() {
                    let permit = admit(&admission, &table, now).unwrap();
                    if let Some(more) = NonZeroU32::new(hits - 1) {
                        prop_assert_eq!(admission.pay(&permit, more, now), Ok(()), "no request came in between");
                    }
                    paid += hits;
                    admission.finish(&table, permit, Outcome::Unseen, now, &mut |(), _| {});
                }
            }
            prop_assert!(f64::from(paid) <= 20.0 * now.as_secs_f64() + 10.0 + 1.0, "{paid} in {now:?}");
        }
    }
}
