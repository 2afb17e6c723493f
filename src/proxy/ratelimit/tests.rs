use super::*;
use crate::clock::Clock;
use crate::ratelimit::message::Entry;
use crate::routing::Routing;
use crate::state::ShedNote;
use crate::tasks::Tasks;
use crate::upstream::{Address, Options, Upstream};
use rayguard_core::admission::table::{LimitTable, Mode};
use rayguard_core::policy::{Bounds, PerClientLimits, Policy, RateBounds};
use rayguard_core::request::catalogue::{self, Surface};
use rayguard_core::request::classify::Classifier;
use rayguard_core::request::identify::Identifier;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

const ENVOY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

/// A service over Ray's own routes. No task of it runs unless a test awaits.
struct Rig {
    service: Arc<Service>,
    proxy: Arc<ProxyState>,
    sheds: mpsc::Receiver<ShedNote>,
}

impl Rig {
    fn new(change: impl FnOnce(&mut Policy)) -> Rig {
        let mut policy = catalogue::policy();
        change(&mut policy);
        let (clock, tasks) = (Clock::start(), Tasks::default());
        let (note, sheds) = mpsc::channel(64);
        let identifier = Identifier::new([1, 2], Vec::new(), Vec::new())
            .with_keys("x-rayguard-key".into(), vec![Sha256::digest(b"nightly").into()]);
        let classifier = Classifier::new(&policy, Surface::Dashboard, &[]).unwrap();
        let proxy = ProxyState::new(Arc::new(policy), identifier, clock, tasks.clone(), note);
        let upstream = Upstream::new(Address::Tcp("127.0.0.1:1".into()), Options::default(), clock, tasks);
        let state = ListenerState::new(
            Arc::clone(&proxy),
            Arc::new(Routing::new(Surface::Dashboard, classifier, upstream)),
        );
        Rig { service: Service::start(state, "rayguard".into(), Duration::from_mins(10)), proxy, sheds }
    }

    /// Job status may be asked for `places` at a time and never waits.
    fn narrow(places: f64) -> Rig {
        Rig::new(|policy| {
            let class = class_mut(policy, "job-status");
            class.in_flight = Bounds::fixed(places);
            class.queue.len_max = 0;
        })
    }

    fn rated(per_second: f64, burst: u32) -> Rig {
        Rig::new(|policy| {
            let class = class_mut(policy, "job-status");
            class.rate = Some(RateBounds { per_second: Bounds::fixed(per_second), burst });
            class.queue.len_max = 0;
        })
    }

    fn class(&self, name: &str) -> ClassId {
        let place = self.proxy.policy.classes.iter().position(|class| &*class.name == name).unwrap();
        ClassId(u8::try_from(place).unwrap())
    }

    fn change(&self, change: impl FnOnce(&mut LimitTable)) {
        let mut table = LimitTable::clone(&self.proxy.table.load());
        change(&mut table);
        self.proxy.set_table(Arc::new(table));
    }

    async fn ask(&self, message: &RateLimitRequest) -> RateLimitResponse {
        self.service.decide(ENVOY, message, self.proxy.clock.now()).await.unwrap()
    }

    /// Whether one descriptor may pass.
    async fn passes(&self, entries: &[(&str, &str)]) -> bool {
        self.ask(&one(entries)).await.overall_code == Code::Ok as i32
    }

    fn told(&self, answer: Answer) -> u64 {
        self.proxy.ratelimit.count(answer)
    }
}

fn class_mut<'a>(policy: &'a mut Policy, name: &str) -> &'a mut rayguard_core::policy::Class {
    policy.classes.iter_mut().find(|class| &*class.name == name).unwrap()
}

fn descriptor(entries: &[(&str, &str)]) -> Descriptor {
    let entry = |(key, value): &(&str, &str)| Entry {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::copy_from_slice(value.as_bytes()),
    };
    Descriptor { entries: entries.iter().map(entry).collect(), hits_addend: None }
}

fn all(descriptors: Vec<Descriptor>) -> RateLimitRequest {
    RateLimitRequest { domain: "rayguard".into(), descriptors, hits_addend: 0 }
}

fn one(entries: &[(&str, &str)]) -> RateLimitRequest {
    all(vec![descriptor(entries)])
}

const STATUS: [(&str, &str); 2] = [("method", "GET"), ("path", "/api/jobs/raysubmit_1?x=2")];

fn header<'a>(answer: &'a RateLimitResponse, name: &str) -> &'a str {
    let found = answer.response_headers_to_add.iter().find(|header| header.key == name);
    found.map_or("", |header| &header.value)
}

#[tokio::test]
async fn a_path_and_the_name_of_its_class_are_held_to_one_limit() {
    let rig = Rig::narrow(2.0);
    assert!(rig.passes(&STATUS).await);
    assert!(rig.passes(&[("class", "job-status")]).await);
    assert!(!rig.passes(&STATUS).await);
    assert!(!rig.passes(&[("class", "job-status")]).await);
    assert_eq!(rig.proxy.admission.counts(rig.class("job-status")).admitted, 2);
    assert_eq!((rig.told(Answer::Ok), rig.told(Answer::OverLimit)), (2, 2));
}

#[tokio::test]
async fn a_refusal_tells_why_and_when_and_stands_in_the_log() {
    let mut rig = Rig::rated(0.1, 1);
    let asked = [&STATUS[..], &[("remote_address", "192.0.2.1")]].concat();
    assert!(rig.passes(&asked).await);
    let refused = rig.ask(&one(&asked)).await;
    assert_eq!(header(&refused, "x-rayguard-reason"), "class_rate");
    let seconds: u64 = header(&refused, "retry-after").parse().unwrap();
    assert!((10..=12).contains(&seconds), "{seconds}");
    assert!(header(&refused, "ratelimit").starts_with("\"job-status\";r=0;t="));
    assert_eq!(header(&refused, "ratelimit-policy"), "\"job-status\";q=0");
    let id = header(&refused, "x-rayguard-request-id");
    assert!(String::from_utf8_lossy(&refused.raw_body).contains(id));
    let status = &refused.statuses[0];
    assert_eq!((status.code, status.limit_remaining), (Code::OverLimit as i32, 0));
    assert_eq!(status.duration_until_reset.unwrap().seconds.unsigned_abs(), seconds);
    let limit = status.current_limit.as_ref().unwrap();
    assert_eq!((limit.requests_per_unit, limit.unit, &*limit.name), (6, Unit::Minute as i32, "job-status"));
    let note = rig.sheds.try_recv().unwrap();
    assert_eq!((&*note.id, note.shed.reason, note.via), (id, Reason::ClassRate, Via::RatelimitService));
}

#[tokio::test]
async fn the_state_api_is_refused_in_rays_envelope() {
    let rig = Rig::new(|policy| {
        let class = class_mut(policy, "state-heavy");
        (class.in_flight, class.queue.len_max) = (Bounds::fixed(0.0), 0);
    });
    let refused = rig.ask(&one(&[("method", "GET"), ("path", "/api/v0/tasks")])).await;
    assert_eq!(refused.overall_code, Code::OverLimit as i32);
    let envelope: serde_json::Value = serde_json::from_slice(&refused.raw_body).unwrap();
    assert_eq!(envelope["result"], false);
    assert!(header(&refused, "content-type").starts_with("application/json"));
}

#[tokio::test]
async fn the_table_decides_and_at_once() {
    let rig = Rig::narrow(100.0);
    let id = rig.class("job-status");
    assert!(rig.passes(&STATUS).await);
    rig.change(|table| table.classes[id.index()].in_flight = 1.0);
    assert!(!rig.passes(&STATUS).await, "cut");
    rig.change(|table| table.classes[id.index()].in_flight = 2.0);
    assert!(rig.passes(&STATUS).await, "raised");
    rig.change(|table| table.classes[id.index()].treatment = Treatment::Blocked);
    assert!(!rig.passes(&STATUS).await, "blocked");
    rig.change(|table| table.classes[id.index()].treatment = Treatment::Exempt);
    assert!(rig.passes(&STATUS).await && rig.passes(&STATUS).await, "exempt");
    assert_eq!(rig.service.places.lock().count(), 2, "what is exempt holds no place");
}

#[tokio::test]
async fn in_shadow_everything_passes_and_what_would_have_been_shed_is_counted() {
    let rig = Rig::rated(1.0, 2);
    let id = rig.class("job-status");
    rig.change(|table| table.classes[id.index()].mode = Mode::Shadow);
    for _ in 0..5 {
        assert!(rig.passes(&STATUS).await);
    }
    let counts = rig.proxy.admission.counts(id);
    assert_eq!((counts.shed_all(), counts.shadow_shed, rig.told(Answer::WouldShed)), (0, 3, 3));
    let mut heavy = one(&STATUS);
    heavy.hits_addend = 100;
    assert_eq!(rig.ask(&heavy).await.overall_code, Code::Ok as i32);
    assert_eq!(rig.told(Answer::WouldShed), 4);
}

#[tokio::test]
async fn what_is_not_known_passes_and_is_counted() {
    let rig = Rig::narrow(0.0);
    let other = RateLimitRequest { domain: "another".into(), ..one(&STATUS) };
    let answer = rig.ask(&other).await;
    assert_eq!((answer.overall_code, answer.statuses.len()), (Code::Ok as i32, 1));
    for unknown in [&[("class", "no-such")][..], &[("path", "/api/jobs/")], &[("generic_key", "x")], &[]] {
        assert!(rig.passes(unknown).await, "{unknown:?}");
    }
    assert_eq!((rig.told(Answer::UnknownDomain), rig.told(Answer::UnknownDescriptor)), (1, 4));
    assert_eq!(rig.proxy.admission.counts(rig.class("job-status")).offered, 0);
}

#[tokio::test]
async fn a_crooked_path_is_no_way_round() {
    let rig = Rig::new(|policy| {
        // Dot segments are held to the limits of what they reach.
        for name in ["other", "job-submit"] {
            let class = class_mut(policy, name);
            (class.in_flight, class.queue.len_max) = (Bounds::fixed(0.0), 0);
        }
    });
    for crooked in ["/api/%2e%2e/api/jobs/", "/api/jobs/%00", "/nowhere"] {
        assert!(!rig.passes(&[("method", "POST"), ("path", crooked)]).await, "{crooked}");
    }
    let mut bytes = one(&[("method", "POST"), ("path", "")]);
    bytes.descriptors[0].entries[1].value = Bytes::from_static(b"/api/jobs/\xff");
    assert_eq!(rig.ask(&bytes).await.overall_code, Code::OverLimit as i32, "not UTF-8");
}

#[tokio::test]
async fn each_client_has_its_own_ceiling_by_address_name_or_key() {
    let rig = Rig::new(|policy| {
        let class = class_mut(policy, "job-status");
        class.per_client = PerClientLimits { rate: Some((0.01, 1)), in_flight: None };
        class.in_flight = Bounds::fixed(1000.0);
    });
    let from = |address: &'static str, more: &[(&'static str, &'static str)]| {
        [&STATUS[..], &[("remote_address", address)], more].concat()
    };
    assert!(rig.passes(&from("192.0.2.1", &[])).await);
    let refused = rig.ask(&one(&from("192.0.2.1", &[]))).await;
    assert_eq!(header(&refused, "x-rayguard-reason"), "client_rate");
    assert!(rig.passes(&from("192.0.2.2", &[])).await, "another address");
    assert!(rig.passes(&from("192.0.2.1", &[("client", "ann")])).await, "a name");
    assert!(!rig.passes(&from("192.0.2.3", &[("client", "ann")])).await, "wherever she calls from");
    assert!(rig.passes(&from("192.0.2.1", &[("x-rayguard-key", "nightly")])).await, "a key");
    assert!(!rig.passes(&from("192.0.2.4", &[("client", "bob"), ("x-rayguard-key", "nightly")])).await);
    assert!(rig.passes(&[&STATUS[..], &[("masked_remote_address", "198.51.100.0/24")]].concat()).await);
}

#[tokio::test]
async fn a_class_that_takes_a_key_is_refused_without_one() {
    let rig = Rig::new(|policy| class_mut(policy, "job-status").require_key = true);
    let refused = rig.ask(&one(&STATUS)).await;
    assert_eq!(header(&refused, "x-rayguard-reason"), "api_key");
    assert!(rig.passes(&[&STATUS[..], &[("x-rayguard-key", "nightly")]].concat()).await);
}

#[tokio::test]
async fn a_place_is_given_back_when_its_end_is_told_and_its_time_is_measured() {
    let rig = Rig::narrow(1.0);
    let begin = [&STATUS[..], &[("request", "id-1")]].concat();
    assert!(rig.passes(&begin).await);
    assert!(!rig.passes(&STATUS).await, "under way");
    let mut end = one(&[("end", "id-1")]);
    end.descriptors[0].hits_addend = Some(200);
    assert_eq!(rig.ask(&end).await.overall_code, Code::Ok as i32);
    assert!(rig.passes(&begin).await, "its place is free");
    end.descriptors[0].hits_addend = Some(503);
    rig.ask(&end).await;
    rig.ask(&end).await;
    let counts = rig.proxy.admission.counts(rig.class("job-status"));
    assert_eq!((counts.served, counts.failed, counts.left), (1, 1, 0));
    assert!(counts.latency_mean().is_some());
    assert_eq!(
        (rig.told(Answer::End), rig.told(Answer::EndUnknown), rig.service.places.lock().count()),
        (2, 1, 0)
    );
}

#[tokio::test]
async fn a_report_that_is_lost_costs_a_place_for_a_few_objectives() {
    let rig = Rig::narrow(1.0);
    let objective = rig.proxy.policy.classes[rig.class("job-status").index()].slo.latency;
    assert!(rig.passes(&[&STATUS[..], &[("request", "id-1")]].concat()).await);
    let (now, stay) = (rig.proxy.clock.now(), rig.service.stay(&rig.proxy, rig.class("job-status")));
    let long = (objective * LOST_OBJECTIVES).max(stay * LOST_SERVICE_TIMES).min(Duration::from_mins(10));
    assert_eq!(rig.service.places.lock().expire(now + long / 2).len(), 0);
    assert_eq!(rig.service.places.lock().expire(now + long + Duration::from_secs(1)).len(), 1);
    assert!(rig.passes(&STATUS).await);
}

#[tokio::test]
async fn without_a_report_a_place_is_held_for_as_long_as_its_class_takes() {
    let rig = Rig::narrow(4.0);
    let id = rig.class("job-status");
    let stay = rig.service.stay(&rig.proxy, id);
    assert_eq!(stay, rig.proxy.policy.classes[id.index()].slo.latency, "nothing is known yet");
    for _ in 0..4 {
        assert!(rig.passes(&STATUS).await);
    }
    let now = rig.proxy.clock.now();
    assert_eq!(rig.service.places.lock().expire(now + stay / 2).len(), 0);
    assert_eq!(rig.service.places.lock().expire(now + stay + Duration::from_secs(1)).len(), 4);
    let counts = rig.proxy.admission.counts(id);
    assert_eq!((counts.finished(), counts.left), (0, 0), "no report says how it ended");
    assert!(rig.passes(&STATUS).await);
    let status = &rig.ask(&one(&STATUS)).await.statuses[0];
    let limit = status.current_limit.clone().unwrap();
    let rate =
        f64::from(limit.requests_per_unit) / if limit.unit == Unit::Second as i32 { 1.0 } else { 60.0 };
    assert!((rate * stay.as_secs_f64() / 4.0 - 1.0).abs() < 0.02, "Little: L / W, {limit:?} {stay:?}");
}

#[tokio::test]
async fn several_descriptors_pass_together_or_not_at_all() {
    let rig = Rig::new(|policy| {
        let class = class_mut(policy, "job-status");
        (class.in_flight, class.queue.len_max) = (Bounds::fixed(2.0), 0);
        let class = class_mut(policy, "views");
        (class.in_flight, class.queue.len_max) = (Bounds::fixed(0.0), 0);
    });
    let both = all(vec![descriptor(&STATUS), descriptor(&[("class", "views")]), descriptor(&STATUS)]);
    let answer = rig.ask(&both).await;
    let codes: Vec<i32> = answer.statuses.iter().map(|status| status.code).collect();
    assert_eq!(codes, [Code::Ok as i32, Code::OverLimit as i32, Code::Ok as i32]);
    assert_eq!(answer.overall_code, Code::OverLimit as i32);
    assert_eq!(rig.proxy.admission.load(rig.class("job-status")).0, 0, "what was taken is given back");
    assert_eq!(rig.service.places.lock().count(), 0);
}

#[tokio::test]
async fn hits_are_the_price_in_rate_and_none_is_a_question() {
    let rig = Rig::rated(0.01, 10);
    let mut asks = one(&STATUS);
    asks.hits_addend = 4;
    let remaining = |answer: RateLimitResponse| (answer.overall_code, answer.statuses[0].limit_remaining);
    assert_eq!(remaining(rig.ask(&asks).await), (Code::Ok as i32, 6));
    asks.descriptors[0].hits_addend = Some(0);
    assert_eq!(remaining(rig.ask(&asks).await), (Code::Ok as i32, 6), "its own word before the request's");
    asks.descriptors[0].hits_addend = Some(5);
    assert_eq!(remaining(rig.ask(&asks).await), (Code::Ok as i32, 1));
    assert_eq!(rig.ask(&asks).await.overall_code, Code::OverLimit as i32);
    asks.descriptors[0].hits_addend = Some(u64::MAX);
    assert_eq!(rig.ask(&asks).await.overall_code, Code::OverLimit as i32);
    let counts = rig.proxy.admission.counts(rig.class("job-status"));
    assert_eq!((counts.offered, counts.admitted, counts.shed_all()), (4, 2, 2));
    asks.descriptors[0].hits_addend = Some(0);
    assert_eq!(remaining(rig.ask(&asks).await), (Code::Ok as i32, 1), "refusals cost nothing");
}

#[tokio::test]
async fn a_question_waits_for_room_no_longer_than_its_client() {
    let rig = Rig::new(|policy| class_mut(policy, "job-status").in_flight = Bounds::fixed(1.0));
    assert!(rig.passes(&[&STATUS[..], &[("request", "first")]].concat()).await);
    let refused = rig.ask(&one(&STATUS)).await;
    assert_eq!(header(&refused, "x-rayguard-reason"), "queue_timeout", "this one does not wait");
    let (patient, end) = (one(&[&STATUS[..], &[("request", "second")]].concat()), one(&[("end", "first")]));
    let deadline = rig.proxy.clock.now() + Duration::from_secs(30);
    let waits = rig.service.decide(ENVOY, &patient, deadline);
    let (waited, _) = tokio::join!(waits, rig.service.decide(ENVOY, &end, deadline));
    assert_eq!(waited.unwrap().overall_code, Code::Ok as i32, "room came");
}

#[tokio::test]
async fn a_question_of_too_many_parts_is_not_answered() {
    let rig = Rig::narrow(100.0);
    let entries = vec![("k", "v"); DESCRIPTORS_MAX + 1];
    for many in [one(&entries), all(vec![descriptor(&STATUS); DESCRIPTORS_MAX + 1])] {
        let fault = rig.service.decide(ENVOY, &many, rig.proxy.clock.now()).await.unwrap_err();
        assert_eq!(fault, CallError::TooMany(DESCRIPTORS_MAX));
    }
    assert_eq!(rig.proxy.admission.counts(rig.class("job-status")).offered, 0);
}

#[test]
fn a_limit_is_told_in_the_least_unit_that_tells_it() {
    let told = |rate: f64| {
        let left = Left { rate: Some((rate, 1)), places: 1, requests: 1, whole: Duration::ZERO };
        let limit = limit("x", &left, Duration::from_secs(1));
        (limit.requests_per_unit, Unit::try_from(limit.unit).unwrap())
    };
    assert_eq!(told(4.0), (4, Unit::Second));
    assert_eq!(told(12.7), (12, Unit::Second));
    assert_eq!(told(2.5), (150, Unit::Minute));
    assert_eq!(told(1.0 / 3600.0), (1, Unit::Hour));
    assert_eq!(told(0.0), (0, Unit::Day));
    assert_eq!(told(1e300).0, u32::MAX);
}
