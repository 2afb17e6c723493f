//! What the proxy enforces, on the wire: shares, bandwidth, keys, and who may hold what for how long.

use crate::rig::{self, Client, Rig, Setup, class, get, until};
use rayguard::core::admission::cost::of_template;
use rayguard::core::policy::{Bounds, Policy, RateBounds};
use rayguard::core::request::catalogue::Surface;
use rayguard::core::request::classify::{HeaderIs, Rule};
use rayguard::proxy::listen;
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

const STATUS: &str = "/api/jobs/raysubmit_1";
const LOGS: &str = "/api/jobs/raysubmit_1/logs";

fn with_class<'a>(policy: &'a mut Policy, name: &str) -> &'a mut rayguard::core::policy::Class {
    &mut policy.classes[class(name).index()]
}

// --- Shares ---

#[tokio::test]
async fn equal_clients_get_equal_shares() {
    let rig = Rig::with_policy(|policy| {
        let status = with_class(policy, "job-status");
        // One at a time, as a process of Ray's works: so each is billed its own work.
        status.in_flight = Bounds::fixed(1.0);
        status.queue.len_max = 40;
    })
    .await;
    let stop = Arc::new(AtomicBool::new(false));
    let served: Arc<Vec<AtomicUsize>> = Arc::new((0..5).map(|_| AtomicUsize::new(0)).collect());
    // Five clients alike, with as many connections as there are places, so that none is ever refused.
    for client in 0..40 {
        let (stop, served, address) = (stop.clone(), served.clone(), rig.address);
        let number = client % served.len();
        rig.proxy.tasks.spawn(async move {
            let mut client = Client::connect(address).await;
            let ask = get(STATUS, &["x-do: slow:2", &format!("x-forwarded-for: 10.0.0.{number}")]);
            while !stop.load(SeqCst) {
                client.send(&ask).await;
                let status = client.answer().await.status;
                served[number].fetch_add(usize::from(status == 200), SeqCst);
            }
        });
    }
    let all = || served.iter().map(|served| served.load(SeqCst)).sum::<usize>();
    until("hundreds are served", || all() > 500).await;
    let got: Vec<f64> = served.iter().map(|served| served.load(SeqCst) as f64).collect();
    stop.store(true, SeqCst);
    let (sum, squares): (f64, f64) = (got.iter().sum(), got.iter().map(|got| got * got).sum());
    let jain = sum * sum / (5.0 * squares);
    assert!(jain >= 0.98, "{got:?}");
    assert_eq!(rig.ray.under_way_max.load(SeqCst), 1);
}

#[tokio::test]
async fn fifty_tabs_behind_one_proxy_are_one_request_at_a_time() {
    let rig = Rig::start().await;
    let mut tabs = Vec::new();
    for tab in 0..50 {
        let mut client = rig.client().await;
        tabs.push(async move {
            for turn in 0..4 {
                let own = [format!("x-forwarded-for: 10.0.0.{tab}"), format!("x-request-id: {tab}-{turn}")];
                client.send(get("/api/jobs/", &["x-do: slow:20", &own[0], &own[1]])).await;
                assert_eq!(client.answer().await.status, 200);
            }
        });
    }
    let tabs: Vec<_> = tabs.into_iter().map(|tab| Box::pin(tab) as rig::Task).collect();
    rig::all(tabs).await;
    assert_eq!(rig.ray.under_way_max.load(SeqCst), 1);
    assert!(rig.ray.count() < 50, "{}", rig.ray.count());
}

// --- Bandwidth ---

#[tokio::test]
async fn a_download_keeps_to_its_classs_bandwidth_and_ray_feels_it() {
    let rig = Rig::with_policy(|policy| {
        with_class(policy, "job-logs").bytes_per_second = Some(400_000.0);
    })
    .await;
    let began = rig.proxy.clock.now();
    let ask = || rig.get(LOGS, &["x-do: big:100000"]);
    let (a, b) = tokio::join!(ask(), ask());
    assert_eq!((a.body.len(), b.body.len()), (100_000, 100_000));
    assert!(
        rig.proxy.clock.now().since(began) > Duration::from_millis(400),
        "200 kB at 400 kB/s, less the burst"
    );

    // Ray cannot get rid of more than the buffers hold: it waits, and so memory is bounded.
    let mut reader = rig.client().await;
    reader.send(get(LOGS, &["x-do: big:60000000"])).await;
    assert!(reader.head().await.is_some());
    reader.exact(50_000).await.unwrap();
    assert_eq!(rig.ray.under_way.load(SeqCst), 1, "Ray still has most of it");
    assert_eq!(
        rig.get(STATUS, &["x-do: big:3000000"]).await.body.len(),
        3_000_000,
        "no other class feels it"
    );
}

#[tokio::test]
async fn an_upload_keeps_to_it_too() {
    let rig = Rig::with_policy(|policy| {
        with_class(policy, "packages").bytes_per_second = Some(400_000.0);
    })
    .await;
    let mut client = rig.client().await;
    let began = rig.proxy.clock.now();
    let length = 120_000;
    client
        .send(format!("PUT /api/packages/gcs/a.zip HTTP/1.1\r\nhost: r\r\ncontent-length: {length}\r\n\r\n"))
        .await;
    client.send(vec![b'p'; length]).await;
    assert_eq!(client.answer().await.status, 200);
    assert!(
        rig.proxy.clock.now().since(began) > Duration::from_millis(200),
        "120 kB at 400 kB/s, less the burst"
    );
    assert_eq!(rig.ray.seen()[0].body.len(), length);
}

#[tokio::test]
async fn a_bandwidth_that_is_raised_is_felt_at_once() {
    let rig = Rig::with_policy(|policy| {
        with_class(policy, "job-logs").bytes_per_second = Some(1000.0);
    })
    .await;
    let mut reader = rig.client().await;
    reader.send(get(LOGS, &["x-do: big:3000000"])).await;
    assert!(reader.head().await.is_some());
    let mut table = (**rig.proxy.table.load()).clone();
    table.classes[class("job-logs").index()].bytes_per_second = Some(1e9);
    rig.proxy.set_table(Arc::new(table));
    assert_eq!(reader.exact(3_000_000).await.map(|body| body.len()), Some(3_000_000), "not 50 minutes later");
}

// --- Who holds what for how long ---

#[tokio::test]
async fn who_stops_reading_gives_its_place_back_but_a_stream_may_stand_still() {
    let stall_timeout = Duration::from_millis(100);
    let bounds = listen::ListenerLimits { stall_timeout, ..listen::ListenerLimits::default() };
    let rig = Rig::with(Setup { bounds, ..Setup::default() }).await;
    let mut stream = rig.client().await;
    stream.send(get("/api/v0/logs/stream", &["x-do: big:60000000"])).await;
    assert!(stream.head().await.is_some());
    let mut idle = rig.client().await;
    idle.send(get(STATUS, &["x-do: big:60000000"])).await;
    assert!(idle.head().await.is_some());
    until("the place is back", || rig.in_flight("job-status") == 0).await;
    until("Ray is rid of it", || rig.ray.under_way.load(SeqCst) == 1).await;
    assert_eq!(rig.proxy.admission.counts(class("job-status")).abandoned, 1);
    assert_eq!(rig.in_flight("log-stream"), 1);
}

#[tokio::test]
async fn whom_ray_keeps_waiting_is_not_taken_for_one_who_does_not_read() {
    let stall_timeout = Duration::from_millis(50);
    let bounds = listen::ListenerLimits { stall_timeout, ..listen::ListenerLimits::default() };
    let rig = Rig::with(Setup { bounds, ..Setup::default() }).await;
    let mut patient = rig.client().await;
    patient.send(get(STATUS, &["x-do: stream"])).await;
    assert!(patient.head().await.is_some());
    let mut idle = rig.client().await;
    idle.send(get(STATUS, &["x-do: big:60000000"])).await;
    assert!(idle.head().await.is_some());
    until("the other one was cut off", || rig.proxy.admission.counts(class("job-status")).abandoned == 1)
        .await;
    rig.ray.hold.add_permits(1);
    assert_eq!(patient.exact(10).await.unwrap(), b"5\r\nline\n\r\n");
}

#[tokio::test]
async fn work_that_ray_never_answers_is_counted_no_longer_than_configured() {
    let bounds = listen::ListenerLimits {
        abandoned_max: Duration::from_millis(50),
        ..listen::ListenerLimits::default()
    };
    let rig = Rig::with(Setup { bounds, ..Setup::default() }).await;
    let mut client = rig.client().await;
    client.send(get(STATUS, &["x-do: hold"])).await;
    until("Ray has it", || rig.ray.count() == 1).await;
    drop(client);
    until("the place is back", || rig.in_flight("job-status") == 0).await;
}

#[tokio::test]
async fn an_upload_is_refused_where_its_job_would_wait_in_vain() {
    let rig = Rig::with_policy(|policy| {
        let submit = with_class(policy, "job-submit");
        submit.rate = Some(RateBounds { per_second: Bounds::fixed(1.0 / 3600.0), burst: 1 });
        submit.queue.len_max = 0;
    })
    .await;
    let upload = "PUT /api/packages/gcs/a.zip HTTP/1.1\r\nhost: ray\r\nexpect: 100-continue\r\n\
                  content-length: 90000000\r\n\r\n";
    let mut first = rig.client().await;
    first.send(upload).await;
    assert!(first.head().await.unwrap().contains("100"), "the job would be taken: so is its package");
    let submit = "POST /api/jobs/ HTTP/1.1\r\nhost: ray\r\ncontent-length: 2\r\n\r\n{}";
    assert_eq!(rig.ask(submit).await.status, 200);
    let refused = rig.ask(upload).await;
    assert_eq!((refused.status, refused.header("x-rayguard-reason")), (503, Some("class_rate")));
    assert_eq!(rig.ask(submit).await.status, 503);
}

// --- API keys ---

#[tokio::test]
async fn a_class_that_takes_a_key_is_closed_to_all_others_and_ray_never_sees_it() {
    let mut setup = Setup { keys: vec![Sha256::digest("nightly").into()], ..Setup::default() };
    for name in ["job-submit", "state-light"] {
        with_class(&mut setup.policy, name).require_key = true;
    }
    let rig = Rig::with(setup).await;
    let submit = |headers: &str| {
        format!("POST /api/jobs/ HTTP/1.1\r\nhost: ray\r\n{headers}content-length: 2\r\n\r\n{{}}")
    };
    for headers in ["", "x-rayguard-key: guess\r\n", "authorization: Bearer nightly\r\n"] {
        let refused = rig.ask(&submit(headers)).await;
        assert_eq!(refused.status, 401, "{headers}");
        assert!(refused.header("www-authenticate").unwrap().contains("x-rayguard-key"));
        assert_eq!(refused.header("x-rayguard-reason"), Some("api_key"));
        assert!(refused.text().contains("ask your Ray administrator for one"), "{}", refused.text());
    }
    let upload = "PUT /api/packages/gcs/a.zip HTTP/1.1\r\nhost: ray\r\ncontent-length: 90000000\r\n\r\n";
    assert_eq!(rig.ask(upload).await.status, 401, "nor is its package taken");
    let refused = rig.get("/api/v0/nodes", &[]).await;
    let envelope: serde_json::Value = serde_json::from_slice(&refused.body).unwrap();
    assert_eq!((refused.status, &envelope["result"]), (401, &serde_json::Value::Bool(false)));
    assert_eq!(rig.ray.count(), 0, "nothing of it reached Ray");

    let taken = rig.ask(&submit("x-rayguard-key: nightly\r\nauthorization: Bearer t\r\n")).await;
    assert_eq!(taken.status, 200);
    let seen = rig.ray.seen().remove(0);
    assert_eq!((seen.header("x-rayguard-key"), seen.header("authorization")), (None, Some("Bearer t")));
    assert_eq!(rig.get("/api/jobs/", &[]).await.status, 200, "reading is for all");
    assert_eq!(rig.get("/api/v0/nodes", &["x-rayguard-key: nightly"]).await.status, 200);
    let counts = rig.proxy.admission.counts(class("job-submit"));
    assert_eq!((counts.offered, counts.admitted, counts.shed_all()), (4, 1, 3));
}

// --- Routes of one's own ---

#[tokio::test]
async fn the_operators_routes_have_their_classes_by_method_path_and_header() {
    let rule = |method: Option<&str>, path: &str, header: Option<(&str, &str)>, class: &str| Rule {
        surface: Surface::Serve,
        method: method.map(Arc::from),
        path: path.into(),
        header: header.map(|(name, value)| HeaderIs { name: name.into(), value: Some(value.into()) }),
        class: class.into(),
    };
    let mut setup = Setup { surface: Surface::Serve, ..Setup::default() };
    for name in ["chat", "batch", "admin"] {
        let serve = setup.policy.classes[class("serve").index()].clone();
        setup.policy.classes.push(rayguard::core::policy::Class {
            name: name.into(),
            in_flight: Bounds::fixed(1.0),
            queue: rayguard::core::policy::Queue { len_max: 0, ..serve.queue },
            ..serve
        });
    }
    setup.rules = vec![
        rule(Some("POST"), "/v1/chat/{*rest}", None, "chat"),
        rule(Some("POST"), "/v1/chat/{*rest}", Some(("x-tier", "batch")), "batch"),
        rule(None, "/v1/models/{name}", None, "admin"),
    ];
    let first = setup.policy.classes.len() - 3;
    let rig = Rig::with(setup).await;
    let offered = || {
        [0, 1, 2].map(|at| {
            let id = rayguard::core::policy::ClassId(u8::try_from(first + at).unwrap());
            rig.proxy.admission.counts(id).offered
        })
    };
    let post = |path: &str, more: &str| {
        format!("POST {path} HTTP/1.1\r\nhost: ray\r\n{more}content-length: 2\r\n\r\n{{}}")
    };
    assert_eq!(rig.ask(&post("/v1/chat/completions", "")).await.status, 200);
    assert_eq!(offered(), [1, 0, 0]);
    assert_eq!(rig.ask(&post("/v1/chat/completions", "x-tier: batch\r\n")).await.status, 200);
    assert_eq!(offered(), [1, 1, 0]);
    assert_eq!(rig.get("/v1/models/llama", &[]).await.status, 200);
    assert_eq!(rig.get("/v1/chat/completions", &[]).await.status, 200, "another method: not the class");
    assert_eq!(offered(), [1, 1, 1]);

    // Full for one is not full for the other.
    let mut held = rig.client().await;
    held.send(post("/v1/chat/completions", "x-do: hold\r\n")).await;
    until("Ray has it", || rig.ray.under_way.load(SeqCst) == 1).await;
    let refused = rig.ask(&post("/v1/chat/completions", "")).await;
    assert_eq!((refused.status, refused.header("x-rayguard-reason")), (503, Some("class_in_flight")));
    assert_eq!(rig.ask(&post("/v1//chat/completions", "")).await.status, 503, "no other spelling dodges it");
    assert_eq!(rig.ask(&post("/v1/chat/completions", "x-tier: batch\r\n")).await.status, 200);
    rig.ray.hold.add_permits(1);
    assert_eq!(held.answer().await.status, 200);
}

#[tokio::test]
async fn a_path_that_no_route_knows_has_a_cost_of_its_own() {
    let rig = Rig::start().await;
    let cost = |path: &str| rig.proxy.admission.cost(of_template(0, "GET", path));
    assert_eq!(rig.get("/of/the/next/ray", &["x-do: slow:20"]).await.status, 200);
    until("its cost is learnt", || cost("/of/the/next/ray") > 0.0).await;
    assert!(cost("/somewhere/else") <= 0.0, "nothing is known of what no client asked for");
    rig.get("/somewhere/else", &[]).await;
    until("the other's is learnt", || cost("/somewhere/else") > 0.0).await;
    assert!(cost("/somewhere/else") < cost("/of/the/next/ray"));
}
