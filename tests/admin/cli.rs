//! The command line against a rayguard that runs.

use crate::instance::{Instance, eventually};
use std::process::{Command, Output};

async fn rayguard(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rayguard"));
    command.args(arguments).env_remove("RAYGUARD_ADMIN_TOKEN").env("USER", "ada").env_remove("SUDO_USER");
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_is_one_screen_without_colours_when_it_is_piped() {
    let instance = Instance::start("cli-status", "", None).await;
    instance.ask("/api/jobs/").await;
    let output = rayguard(&["status", "--address", &instance.admin]).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let screen = said(&output);
    for part in [
        "rayguard status",
        "Mode    enforcing",
        "Ray     2.60.0 answers",
        "Pressure",
        "gcs_latency",
        "Classes",
    ] {
        assert!(screen.contains(part), "{part} in\n{screen}");
    }
    assert!(!screen.contains('\x1b'));
    assert!(screen.lines().count() < 50, "{screen}");
    let output = rayguard(&["status", "--address", &instance.admin, "--format", "json"]).await;
    let state: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(state["classes"].as_array().unwrap().len() > 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pin_is_set_shown_and_taken_away_and_codes_tell_wrong_questions_from_failures() {
    let instance = Instance::start("cli-pin", "", None).await;
    let run =
        async |arguments: &[&str]| rayguard(&[arguments, &["--address", &instance.admin]].concat()).await;
    let output = run(&["pin", "job-submit", "in_flight=2", "--for", "30m", "--why", "night shift"]).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let answer = said(&output);
    assert!(
        answer.starts_with("job-submit in_flight is pinned at 2 for 30m; also in force: rate "),
        "{answer}"
    );
    assert!(answer.contains("/s, ") && answer.contains("JobHead in_flight "), "{answer}");
    assert!(said(&run(&["status"]).await).contains("by ada (127.0.0.1): night shift"));
    let limits = said(&run(&["limits", "job-submit"]).await);
    assert!(limits.contains("pinned") && !limits.contains("manual"), "{limits}");
    let answer = said(&run(&["unfreeze", "--why", "over"]).await);
    assert_eq!(answer, "limits were not frozen; job-submit in_flight stays pinned\n");
    assert_eq!(run(&["unpin", "job-submit", "in_flight"]).await.status.code(), Some(0));
    for (asked_wrongly, arguments) in [
        (2, &["unpin", "job-submit", "in_flight"][..]),
        (2, &["pin", "no-such", "rate=1", "--why", "x"]),
        (2, &["pin", "job-submit", "in_flight=1e9", "--why", "x"]),
        (2, &["pin", "job-submit", "in_flight"]),
        (2, &["pin", "job-submit", "in_flight=2", "--for", "500d", "--why", "x"]),
        (2, &["pin", "JobHead", "in_flight=2", "--why", "x"]),
        (2, &["limits", "no-such"]),
    ] {
        let output = run(arguments).await;
        assert_eq!(output.status.code(), Some(asked_wrongly), "{arguments:?} {output:?}");
        assert!(!output.stderr.is_empty());
    }
    let output = rayguard(&["status", "--address", "http://127.0.0.1:1"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("is it running"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_token_comes_from_a_file() {
    let instance = Instance::start("cli-token", "", Some("s3cret")).await;
    assert_eq!(
        rayguard(&["freeze", "--address", &instance.admin, "--why", "x"]).await.status.code(),
        Some(1)
    );
    let path = std::env::temp_dir().join(format!("rayguard-cli-token-{}", std::process::id()));
    std::fs::write(&path, "s3cret\n").unwrap();
    let token = path.to_str().unwrap();
    let output =
        rayguard(&["freeze", "--address", &instance.admin, "--token-file", token, "--why", "upgrade"]).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(instance.json("/api/v1/state").await["frozen"], true);
    std::fs::remove_file(path).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shadow_and_enforce_take_a_class_or_all() {
    let instance = Instance::start("cli-mode", "", None).await;
    let run =
        async |arguments: &[&str]| rayguard(&[arguments, &["--address", &instance.admin]].concat()).await;
    let without_reason = run(&["shadow", "job-list"]).await;
    assert_eq!(without_reason.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&without_reason.stderr).contains("write --why"));
    let slip = run(&["shadow", "job-lst", "--why", "a test"]).await;
    assert!(String::from_utf8_lossy(&slip.stderr).contains("did you mean `job-list`?"), "{slip:?}");
    assert_eq!(run(&["shadow", "job-list", "--why", "a test"]).await.status.code(), Some(0));
    assert!(said(&run(&["status", "--all"]).await).contains("enforcing; in shadow: job-list;"));
    assert_eq!(run(&["enforce", "--why", "a test"]).await.status.code(), Some(0));
    assert!(said(&run(&["status"]).await).contains("Mode    enforcing;"));
    assert_eq!(said(&run(&["alerts"]).await), "no alert is firing\n");
    eventually("the reason is in the log, over the admin API", async || {
        said(&run(&["log", "--class", "job-list"]).await).contains("a test").then_some(())
    })
    .await;
    assert_eq!(run(&["log", "--class", "job-lst"]).await.status.code(), Some(1));
    let replayed = said(&run(&["replay"]).await);
    assert!(replayed.contains("adjustments verified, no differences"), "{replayed}");
    let explained = said(&run(&["explain", "--class", "job-list"]).await);
    assert!(explained.contains("a test"), "{explained}");
}

#[tokio::test]
async fn what_limits_suggest_writes_passes_the_check() {
    let instance =
        Instance::start("cli-suggest", "mode = 'shadow'\n[class.job-list]\ncoalesce = 'off'", None).await;
    for id in 0..120 {
        assert_eq!(instance.ask("/api/jobs/").await, 200);
        instance.ask(&format!("/api/internal/{id}/report")).await;
    }
    let suggested = rayguard(&["limits", "suggest", "--address", &instance.admin]).await;
    assert_eq!(suggested.status.code(), Some(0));
    assert!(said(&suggested).starts_with("# Nothing suggested: only"), "{}", said(&suggested));
    // As if it had been watched for an hour.
    let mut seen: rayguard::admin::discovery::Discovery =
        serde_json::from_value(instance.json("/api/v1/discovery").await).unwrap();
    seen.watched_s = 3600.0;
    let text = rayguard::cli::suggest::section(&seen);
    assert!(text.contains("\n[class.job-list]\n# 120 requests by about 1 client:"), "{text}");
    assert!(text.contains("# path = \"/api/internal/{id}/report\""), "{text}");
    let file = instance.file.with_file_name("suggested.toml");
    std::fs::write(&file, &text).unwrap();
    let check = rayguard(&["check", "--config", file.to_str().unwrap()]).await;
    assert_eq!(check.status.code(), Some(0), "{}\n{text}", said(&check));
    let clients = rayguard(&["clients", "--address", &instance.admin]).await;
    assert!(said(&clients).contains("127.0.0.1"), "{}", said(&clients));
}

#[tokio::test]
async fn reload_says_what_came_of_it() {
    let instance = Instance::start("cli-reload", "", None).await;
    let fine = rayguard(&["reload", "--address", &instance.admin]).await;
    assert_eq!(fine.status.code(), Some(0));
    assert!(said(&fine).contains("is in force"), "{}", said(&fine));
    std::fs::write(&instance.file, "upstreem = 'x'").unwrap();
    let wrong = rayguard(&["reload", "--address", &instance.admin]).await;
    assert_eq!(wrong.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("upstreem"));
}
