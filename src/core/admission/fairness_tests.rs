//! Fairness of admission and queue together, in virtual time: clients that ask at their own pace, a
//! class with room for a few, and what each of them got.

use super::controller::{AdmissionController, Ask, Decision, Grant, Permit, WaitId};
use super::meter::{Outcome, Reason};
use super::table::LimitTable;
use crate::policy::{Bounds, Class, ClassId, Queue, RateBounds, SignalId, plain};
use crate::request::client_id::ClientId;
use crate::time::Time;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::time::Duration;

/// Answers a second.
const CAPACITY: f64 = 100.0;
/// The class's room.
const ROOM: f64 = 4.0;

#[derive(Clone, Copy, Debug)]
struct TestClient {
    client: ClientId,
    per_second: f64,
    from_s: f64,
    /// How many times longer than the others' each of its requests takes.
    length: f64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Got {
    asked: f64,
    served: f64,
    /// Answered within the window, whenever it was asked: what the module did there.
    done: f64,
}

impl Got {
    fn share(self) -> f64 {
        self.served / self.asked.max(1.0)
    }
}

enum Next {
    Ask(usize),
    Ready(usize, Permit),
    Done(usize, Permit),
    Expire(WaitId),
}

/// How a module answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Plant {
    /// One process, as Ray's are: one after the other, 10 ms for each.
    Single,
    /// The same, once what it asks of the GCS has come: after 30 ms, in which it does others' work.
    Awaiting,
    /// As many at once as are let in, 40 ms for each; those let in together end together.
    Parallel,
}

fn plant() -> impl Strategy<Value = Plant> {
    prop_oneof![Just(Plant::Single), Just(Plant::Awaiting), Just(Plant::Parallel)]
}

struct World {
    plant: Plant,
    admission: AdmissionController<usize>,
    table: LimitTable,
    events: BTreeMap<(Time, u64), Next>,
    order: u64,
}

impl World {
    fn at(&mut self, time: Time, next: Next) {
        self.order += 1;
        self.events.insert((time, self.order), next);
    }

    /// Runs until `end_s`; what is asked from `count_from_s` on, and not in the last seconds that
    /// a request may wait, counts.
    fn run(&mut self, clients: &[TestClient], count_from_s: f64, end_s: f64) -> Vec<Got> {
        let seconds = |length: f64| Duration::from_secs_f64(length / CAPACITY);
        let mut free = Time::ZERO;
        let mut got = vec![Got::default(); clients.len()];
        for (at, client) in clients.iter().enumerate() {
            // Not all in step.
            let start = client.from_s + 0.37 * at as f64 / (clients.len() as f64 * client.per_second);
            self.at(Time::from_secs_f64(start), Next::Ask(at));
        }
        let counts = |since: Time| {
            since >= Time::from_secs_f64(count_from_s) && since < Time::from_secs_f64(end_s - 3.0)
        };
        while let Some(((now, _), next)) = self.events.pop_first() {
            if now > Time::from_secs_f64(end_s) {
                break;
            }
            let mut woken = Vec::new();
            match next {
                Next::Ask(at) => {
                    let client = clients[at];
                    self.at(now + Duration::from_secs_f64(1.0 / client.per_second), Next::Ask(at));
                    got[at].asked += f64::from(u8::from(counts(now)));
                    let ask = Ask { class: ClassId(0), route: 0, client: client.client };
                    let decision = self
                        .admission
                        .decide(&self.table, ask, now, || at, &mut |at, grant| woken.push((at, grant)));
                    match decision {
                        Decision::Admit(permit) => woken.push((at, Grant::Go(permit))),
                        Decision::Wait(id, deadline) => self.at(deadline, Next::Expire(id)),
                        Decision::Shed(_) => {}
                    }
                }
                Next::Ready(at, permit) => {
                    free = free.max(now) + seconds(clients[at].length);
                    self.at(free, Next::Done(at, permit));
                }
                Next::Done(at, permit) => {
                    let asked = Time(permit.admitted.0.saturating_sub(nanos(permit.waited)));
                    got[at].served += f64::from(u8::from(counts(asked)));
                    got[at].done += f64::from(u8::from(counts(now)));
                    self.admission.finish(&self.table, permit, Outcome::Served, now, &mut |at, grant| {
                        woken.push((at, grant));
                    });
                }
                Next::Expire(id) => drop(self.admission.expire(id, Reason::QueueTimeout)),
            }
            for (at, grant) in woken {
                if let Grant::Go(permit) = grant {
                    let length = clients[at].length;
                    match self.plant {
                        Plant::Single => self.at(now, Next::Ready(at, permit)),
                        Plant::Awaiting => self.at(now + seconds(ROOM - 1.0), Next::Ready(at, permit)),
                        Plant::Parallel => self.at(now + seconds(ROOM * length), Next::Done(at, permit)),
                    }
                }
            }
        }
        got
    }
}

fn nanos(length: Duration) -> u64 {
    u64::try_from(length.as_nanos()).unwrap()
}

fn world(plant: Plant, len_max: u32) -> World {
    world_with(plant, len_max, |_| {})
}

fn world_with(plant: Plant, len_max: u32, adapt: impl FnOnce(&mut Class)) -> World {
    let queue = Queue { len_max, wait_max: Duration::from_secs(2) };
    let mut class = Class { queue, ..plain::class("a", ROOM) };
    adapt(&mut class);
    let mut policy = plain::policy(vec![class], 100.0);
    // More than fits into the room.
    policy.modules[0].work = (plant != Plant::Parallel).then_some(Duration::from_mins(1));
    let table = LimitTable::initial(&policy);
    World {
        plant,
        admission: AdmissionController::new(&policy, &table, Time::ZERO),
        table,
        events: BTreeMap::new(),
        order: 0,
    }
}

fn client(address: u64, credential: Option<u64>, per_second: f64) -> TestClient {
    TestClient { client: ClientId { address, credential }, per_second, from_s: 0.0, length: 1.0 }
}

fn done(got: &[Got]) -> f64 {
    got.iter().map(|got| got.done).sum()
}

fn jain(got: &[Got]) -> f64 {
    let (sum, squares) = got
        .iter()
        .fold((0.0, 0.0), |(sum, squares), got| (sum + got.served, squares + got.served * got.served));
    sum * sum / (got.len() as f64 * squares)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// A 20x flood from one identity costs those at or below their fair share
    /// nothing, and no permit stands idle meanwhile.
    #[test]
    fn a_flood_costs_those_within_their_share_nothing(
        polite in 1usize..8, load in 0.1f64..1.0, credentials in any::<bool>(), len_max in 32u32..128,
        plant in plant(),
    ) {
        let fair = CAPACITY / (polite as f64 + 1.0);
        let mut clients: Vec<TestClient> = (0..polite as u64)
            .map(|at| client(at, credentials.then_some(1000 + at), fair * load))
            .collect();
        clients.push(client(99, None, 20.0 * CAPACITY));
        let got = world(plant, len_max).run(&clients, 1.0, 12.0);
        for one in &got[..polite] {
            prop_assert!(one.share() >= 0.995, "{got:?}");
        }
        prop_assert!(done(&got) / (8.0 * CAPACITY) >= 0.95, "work conserving: {got:?}");
    }

    /// ... nor does one whose requests take longer, or less, than theirs.
    #[test]
    fn a_flood_of_long_requests_costs_them_nothing_either(
        polite in 1usize..8, load in 0.1f64..1.0, length in 0.1f64..8.0, plant in plant(),
    ) {
        // No client is short of a process that idles while all it let in await the GCS.
        prop_assume!(plant != Plant::Awaiting || length >= 1.0);
        let fair = CAPACITY / (polite as f64 + 1.0);
        let mut clients: Vec<TestClient> = (0..polite as u64).map(|at| client(at, None, fair * load)).collect();
        clients.push(TestClient { length, ..client(99, None, 20.0 * CAPACITY) });
        let got = world(plant, 64).run(&clients, 3.0, 14.0);
        for one in &got[..polite] {
            prop_assert!(one.share() >= 0.995, "{got:?}");
        }
        let work = done(&got[..polite]) + length * got[polite].done;
        prop_assert!(work / (8.0 * CAPACITY) >= 0.95, "work conserving: {got:?}");
    }

    /// Where a rate binds, the number of requests is scarce, and not what each of them takes.
    #[test]
    fn where_a_rate_binds_no_client_gets_more_for_asking_for_less(
        polite in 1usize..8, load in 0.1f64..1.0, length in 0.02f64..1.0, plant in plant(), gated in any::<bool>(),
    ) {
        let rate = CAPACITY / 5.0;
        let fair = rate / (polite as f64 + 1.0);
        let mut clients: Vec<TestClient> = (0..polite as u64).map(|at| client(at, None, fair * load)).collect();
        clients.push(TestClient { length, ..client(99, None, 20.0 * CAPACITY) });
        let mut world = world_with(plant, 64, |class| {
            class.rate = Some(RateBounds { per_second: Bounds::fixed(rate), burst: 4 });
            class.backlog = gated.then_some(SignalId(0));
        });
        let got = world.run(&clients, 3.0, 14.0);
        for one in &got[..polite] {
            prop_assert!(one.share() >= 0.995, "{got:?}");
        }
        prop_assert!(done(&got) / (8.0 * rate) >= 0.95, "work conserving: {got:?}");
    }

    /// Those who ask alike get alike, however many they are and however much they ask for.
    #[test]
    fn equal_clients_get_equal_shares(clients in 2u64..12, times in 1.5f64..10.0, plant in plant()) {
        let each = CAPACITY * times / clients as f64;
        let clients: Vec<TestClient> = (0..clients).map(|at| client(at, None, each)).collect();
        let got = world(plant, 64).run(&clients, 1.0, 12.0);
        prop_assert!(jain(&got) >= 0.98, "{got:?}");
        prop_assert!(done(&got) / (8.0 * CAPACITY) >= 0.95, "work conserving: {got:?}");
    }
}

const TOKEN: u64 = 0x70c3;

/// The whole cluster shows one token, and asks for 80 of 100; a stranger floods from `from_s` on.
fn cluster_and_stranger(from_s: f64) -> Vec<TestClient> {
    let mut clients: Vec<TestClient> = (0..8).map(|at| client(at, Some(TOKEN), 10.0)).collect();
    clients.push(TestClient { from_s, ..client(99, None, 20.0 * CAPACITY) });
    clients
}

/// Guards against one share for all who use the cluster's own token.
#[test]
fn a_stranger_without_a_token_does_not_squeeze_those_who_share_the_clusters() {
    let got = world(Plant::Single, 64).run(&cluster_and_stranger(90.0), 91.0, 103.0);
    for one in &got[..8] {
        assert!(one.share() >= 0.995, "{got:?}");
    }
}

/// ... and the credential is still held while nothing else is known: 64 nodes with one token are
/// one client from their first request on.
#[test]
fn a_token_that_floods_from_many_addresses_is_one_client() {
    let mut clients: Vec<TestClient> = (0..4).map(|at| client(at, None, 9.0)).collect();
    clients.extend((10..74).map(|at| client(at, Some(66), 4.0 * CAPACITY / 64.0)));
    // Longer than it takes to be known as everybody's, were a flood to teach that.
    let got = world(Plant::Single, 64).run(&clients, 1.0, 90.0);
    for one in &got[..4] {
        assert!(one.share() >= 0.995, "{:?}", &got[..4]);
    }
}
