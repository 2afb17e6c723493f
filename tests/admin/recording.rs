//! A recording made through the whole gate: what is in it, and what is not.

use crate::gate::{Gate, eventually};
use rayguard::core::recording::{Ending, Recording, read};
use rayguard::observe::recorder;
use std::path::PathBuf;

struct Recorded {
    bytes: Vec<u8>,
    recording: Recording,
}

/// Records what happens meanwhile.
async fn record(gate: &Gate, name: &str, meanwhile: impl AsyncFnOnce()) -> Recorded {
    let path: PathBuf =
        std::env::temp_dir().join(format!("rayguard-recording-{name}-{}.rec", std::process::id()));
    let (recorder, scribe) = recorder::recorder(&path, recorder::BYTES_DEFAULT).unwrap();
    let writing = std::thread::spawn(move || scribe.run());
    gate.guard.start_recording(recorder);
    meanwhile().await;
    gate.guard.stop_recording();
    let tally = tokio::task::spawn_blocking(move || writing.join().unwrap()).await.unwrap();
    assert_eq!(tally.lost, 0);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let recording = read(&bytes).unwrap();
    assert_eq!(recording.unreadable, 0);
    Recorded { bytes, recording }
}

fn class_of(recording: &Recording, at: usize) -> &str {
    &recording.head.classes[usize::from(recording.arrivals[at].exchange.class)].name
}

#[tokio::test]
async fn a_recording_holds_what_passed_and_nothing_that_names_anybody() {
    let gate = Gate::start("recording", "trusted_proxies = ['127.0.0.1/32']", None).await;
    let secrets =
        ["tok-3fd1c5", "203.0.113.77", "raysubmit_secret9", "pw=hunter2", "sess-cookie-1", "bodytext42"];
    let recorded = record(&gate, "secrets", async || {
        for (token, id) in [("tok-3fd1c5", "raysubmit_secret9"), ("other", "raysubmit_2")] {
            let request = gate
                .client
                .get(format!("http://{}/api/jobs/{id}?pw=hunter2", gate.door))
                .header("authorization", format!("Bearer {token}"))
                .header("cookie", "ray-authentication-token=sess-cookie-1")
                .header("x-forwarded-for", "203.0.113.77");
            request.send().await.unwrap().bytes().await.unwrap();
        }
        let job = gate.client.post(format!("http://{}/api/jobs/", gate.door)).body("bodytext42");
        job.send().await.unwrap().bytes().await.unwrap();
        assert_eq!(gate.ask("/api/v0/delay/5").await, 404, "blocked by default");
        eventually("a signal was read", async || {
            let signals = gate.json("/api/v1/signals").await;
            signals.as_array().unwrap().iter().any(|signal| signal["health"] == "fresh").then_some(())
        })
        .await;
        tokio::time::sleep(std::time::Duration::from_millis(1200)).await;
    })
    .await;
    for secret in secrets {
        let found = recorded.bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
        assert!(!found, "{secret} is in the recording");
    }
    for secret in ["127.0.0.1", "/api/jobs/raysubmit"] {
        assert!(!String::from_utf8_lossy(&recorded.bytes).contains(secret), "{secret} is in the recording");
    }
    let recording = &recorded.recording;
    let classes: Vec<&str> = (0..recording.arrivals.len()).map(|at| class_of(recording, at)).collect();
    assert_eq!(classes, ["job-status", "job-status", "job-submit", "blocked"]);
    let [first, second, submit, refused] = [0, 1, 2, 3].map(|at| recording.arrivals[at].exchange);
    assert_eq!(first.address, second.address, "one address");
    assert_ne!(first.credential, second.credential, "two tokens");
    assert!(first.latency_us > 0 && first.answered_bytes > 0);
    assert_eq!(submit.asked_bytes, 10);
    assert!(matches!(refused.ending, Ending::Shed(_)), "{refused:?}");
    assert!(!recording.limits.is_empty() && !recording.signals.is_empty());
}

#[tokio::test]
async fn shared_answers_and_shadow_refusals_are_told_apart() {
    let gate =
        Gate::start("recording-shadow", "[class.state-heavy]\nmode = 'shadow'\nin_flight = 1\n", None).await;
    let recorded = record(&gate, "shadow", async || {
        let list = || gate.ask("/api/v0/tasks");
        let detail = || gate.ask("/api/v0/tasks?detail=1");
        tokio::join!(list(), detail(), list(), detail(), list(), detail());
    })
    .await;
    let endings: Vec<_> = recorded.recording.arrivals.iter().map(|it| it.exchange.ending).collect();
    assert_eq!(endings.len(), 6, "every question is one line: {endings:?}");
    assert!(endings.contains(&Ending::Shared), "{endings:?}");
    assert!(endings.iter().all(|ending| matches!(ending, Ending::Served | Ending::Shared)), "{endings:?}");
    let shadowed = recorded.recording.arrivals.iter().filter(|it| it.exchange.would_shed.is_some()).count();
    assert_eq!(shadowed, 1, "of two that passed, the second would have been refused");
}
