//! A trace made through the whole rayguard: what is in it, and what is not.

use crate::instance::{Instance, eventually};
use rayguard::core::traffic_trace::{Ending, TrafficTrace, read};
use rayguard::observe::trace_writer;
use std::path::PathBuf;

struct Traced {
    bytes: Vec<u8>,
    trace: TrafficTrace,
}

/// Records what happens meanwhile.
async fn record(instance: &Instance, name: &str, meanwhile: impl AsyncFnOnce()) -> Traced {
    let path: PathBuf =
        std::env::temp_dir().join(format!("rayguard-trace-{name}-{}.rec", std::process::id()));
    let (trace_writer, thread) = trace_writer::channel(&path, trace_writer::BYTES_DEFAULT).unwrap();
    let writing = std::thread::spawn(move || thread.run());
    instance.app.start_trace(trace_writer);
    meanwhile().await;
    instance.app.stop_trace();
    let tally = tokio::task::spawn_blocking(move || writing.join().unwrap()).await.unwrap();
    assert_eq!(tally.lost, 0);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let trace = read(&bytes).unwrap();
    assert_eq!(trace.unreadable, 0);
    Traced { bytes, trace }
}

fn class_of(trace: &TrafficTrace, at: usize) -> &str {
    &trace.head.classes[usize::from(trace.arrivals[at].exchange.class)].name
}

#[tokio::test]
async fn a_trace_holds_what_passed_and_nothing_that_names_anybody() {
    let instance = Instance::start("trace", "trusted_proxies = ['127.0.0.1/32']", None).await;
    let secrets =
        ["tok-3fd1c5", "203.0.113.77", "raysubmit_secret9", "pw=hunter2", "sess-cookie-1", "bodytext42"];
    let recorded = record(&instance, "secrets", async || {
        for (token, id) in [("tok-3fd1c5", "raysubmit_secret9"), ("other", "raysubmit_2")] {
            let request = instance
                .client
                .get(format!("http://{}/api/jobs/{id}?pw=hunter2", instance.proxy))
                .header("authorization", format!("Bearer {token}"))
                .header("cookie", "ray-authentication-token=sess-cookie-1")
                .header("x-forwarded-for", "203.0.113.77");
            request.send().await.unwrap().bytes().await.unwrap();
        }
        let job = instance.client.post(format!("http://{}/api/jobs/", instance.proxy)).body("bodytext42");
        job.send().await.unwrap().bytes().await.unwrap();
        assert_eq!(instance.ask("/api/v0/delay/5").await, 404, "blocked by default");
        eventually("a signal was read", async || {
            let signals = instance.json("/api/v1/signals").await;
            signals.as_array().unwrap().iter().any(|signal| signal["health"] == "fresh").then_some(())
        })
        .await;
        tokio::time::sleep(std::time::Duration::from_millis(1200)).await;
    })
    .await;
    for secret in secrets {
        let found = recorded.bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
        assert!(!found, "{secret} is in the trace");
    }
    for secret in ["127.0.0.1", "/api/jobs/raysubmit"] {
        assert!(!String::from_utf8_lossy(&recorded.bytes).contains(secret), "{secret} is in the trace");
    }
    let trace = &recorded.trace;
    let classes: Vec<&str> = (0..trace.arrivals.len()).map(|at| class_of(trace, at)).collect();
    assert_eq!(classes, ["job-status", "job-status", "job-submit", "blocked"]);
    let [first, second, submit, refused] = [0, 1, 2, 3].map(|at| trace.arrivals[at].exchange);
    assert_eq!(first.address, second.address, "one address");
    assert_ne!(first.credential, second.credential, "two tokens");
    assert!(first.latency_us > 0 && first.answered_bytes > 0);
    assert_eq!(submit.asked_bytes, 10);
    assert!(matches!(refused.ending, Ending::Shed(_)), "{refused:?}");
    assert!(!trace.limits.is_empty() && !trace.signals.is_empty());
}

#[tokio::test]
async fn shared_answers_and_shadow_refusals_are_told_apart() {
    let instance =
        Instance::start("trace-shadow", "[class.state-heavy]\nmode = 'shadow'\nin_flight = 1\n", None).await;
    let recorded = record(&instance, "shadow", async || {
        let tasks = || instance.ask("/api/v0/tasks");
        let list = || instance.ask("/api/jobs/");
        tokio::join!(tasks(), tasks(), tasks(), list(), list(), list());
    })
    .await;
    let arrivals = &recorded.trace.arrivals;
    assert_eq!(arrivals.len(), 6, "every question is one line");
    let of = |class: &str| -> Vec<_> {
        let is_of = |at: &usize| class_of(&recorded.trace, *at) == class;
        (0..arrivals.len()).filter(is_of).map(|at| arrivals[at].exchange).collect()
    };
    let shadowed = of("state-heavy");
    assert!(
        shadowed.iter().all(|it| it.ending == Ending::Served),
        "nothing is shared in shadow: {shadowed:?}"
    );
    assert!(
        shadowed.iter().any(|it| it.would_shed.is_some()),
        "one at a time would have passed: {shadowed:?}"
    );
    let lists = of("job-list");
    assert!(lists.iter().any(|it| it.ending == Ending::Shared), "{lists:?}");
    assert!(lists.iter().all(|it| matches!(it.ending, Ending::Served | Ending::Shared)), "{lists:?}");
}
