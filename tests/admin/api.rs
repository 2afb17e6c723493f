//! The API: what it tells, what it refuses, and what an order does.

use crate::described::{DESCRIPTION, fits_named};
use crate::instance::{Instance, eventually};
use rayguard::admin::answer::ProblemBody;
use rayguard::admin::openapi::OPERATIONS;
use rayguard::admin::schema::{AdjustmentRow, Adjustments, EventRow, Limits, State};
use rayguard::core::event::{Adjustment, Event, LimitKind, LoggedEvent, LoopKind, Mode};
use rayguard::core::time::WallMs;
use rayguard::runtime::ray_identity::Seen;
use serde_json::{Value, json};
use std::collections::BTreeSet;

#[tokio::test]
async fn everything_that_can_be_looked_at_answers_and_says_what_it_is() {
    let instance = Instance::start("look", "", None).await;
    for path in
        OPERATIONS.iter().filter(|operation| operation.method == "GET").map(|operation| operation.path)
    {
        let answer = instance.client.get(format!("{}{path}", instance.admin)).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{path}");
        let headers = answer.headers();
        assert_eq!(headers["cache-control"], "no-store", "{path}");
        assert_eq!(headers["x-content-type-options"], "nosniff", "{path}");
        assert!(headers.get("access-control-allow-origin").is_none(), "{path}");
        let kind = headers["content-type"].to_str().unwrap().to_owned();
        let body = answer.text().await.unwrap();
        if kind == "application/json" {
            serde_json::from_str::<Value>(&body).unwrap();
        }
    }
}

#[tokio::test]
async fn the_state_names_the_proxy_its_classes_and_what_came_through() {
    let instance = Instance::start("state", "", None).await;
    assert_eq!(instance.ask("/api/jobs/").await, 200);
    let state: State = eventually("the request is counted", async || {
        let state: State = serde_json::from_value(instance.json("/api/v1/state").await).unwrap();
        let listed = state.view.classes.iter().find(|class| class.name == "job-list").unwrap();
        (listed.offered == 1 && listed.admitted == 1).then_some(state)
    })
    .await;
    assert_eq!(state.listeners[0].kind, "dashboard");
    assert!(state.view.upstream_problem.is_none());
    assert!(!state.token_required);
    let limits: Limits = serde_json::from_value(instance.json("/api/v1/limits").await).unwrap();
    assert!(
        limits.limits.iter().all(|row| row.limit.min <= row.limit.value && row.limit.value <= row.limit.max)
    );
}

#[tokio::test]
async fn a_head_is_taken_for_one_process_until_it_tells_its_version() {
    let instance = Instance::start("profile", "", None).await;
    let modules = |limits: &Value| -> Vec<String> {
        let modules = limits["modules"].as_array().unwrap().iter();
        modules.map(|module| module["name"].as_str().unwrap().to_owned()).collect()
    };
    eventually("the profile of the emulated head", async || {
        let ray = instance.json("/api/v1/state").await["ray"].clone();
        (ray["version"] == "2.60.0" && ray["profile"] == "2.60").then_some(())
    })
    .await;
    let several = modules(&instance.json("/api/v1/limits").await);
    assert!(several.iter().any(|name| name == "JobHead"), "{several:?}");
    // The same head, had it told an older version.
    instance.app.on_ray(&Seen::of_version("2.44.1"));
    let one = modules(&instance.json("/api/v1/limits").await);
    assert!(
        !one.iter().any(|name| name == "JobHead") && one.iter().any(|name| name == "Dashboard"),
        "{one:?}"
    );
    assert_eq!(instance.ask("/api/jobs/").await, 200);
    let events = instance.get("/api/v1/events").await.1;
    assert!(events.contains("profile 2.44 (made for it)"), "{events}");
}

#[tokio::test]
async fn a_version_in_the_file_outranks_what_the_head_tells_and_a_module_in_it_keeps_its_limits() {
    let config = "ray_version = '2.44'\n[module.StateHead]\nin_flight = 5\n";
    let instance = Instance::start("fixed-profile", config, None).await;
    eventually("the version of the emulated head", async || {
        let ray = instance.json("/api/v1/state").await["ray"].clone();
        (ray["version"] == "2.60.0").then(|| assert_eq!(ray["profile"], "2.44", "{ray}"))
    })
    .await;
    let limits = instance.json("/api/v1/limits").await;
    let row = |class: &str| {
        let rows = limits["limits"].as_array().unwrap();
        rows.iter().find(|row| row["class"] == class).unwrap()["module"].clone()
    };
    assert_eq!([row("job-list"), row("state-heavy")], ["Dashboard", "StateHead"]);
}

#[tokio::test]
async fn signals_are_read_and_history_grows() {
    let instance = Instance::start("signals", "", None).await;
    eventually("some signal is fresh", async || {
        let signals = instance.json("/api/v1/signals").await;
        signals.as_array().unwrap().iter().any(|signal| signal["health"] == "fresh").then_some(())
    })
    .await;
    let history = eventually("two samples", async || {
        let history = instance.json("/api/v1/history").await;
        (history["times_ms"].as_array().unwrap().len() >= 2).then_some(history)
    })
    .await;
    let count = history["times_ms"].as_array().unwrap().len();
    assert_eq!(history["classes"]["job-list"]["offered"].as_array().unwrap().len(), count);
    let last = history["times_ms"][count - 1].as_u64().unwrap();
    let newer = instance.json(&format!("/api/v1/history?since={last}&class=job-list")).await;
    assert!(newer["times_ms"].as_array().unwrap().iter().all(|at| at.as_u64().unwrap() > last));
    assert_eq!(newer["classes"].as_object().unwrap().len(), 1);
}

#[tokio::test]
async fn a_pin_holds_is_told_with_its_reason_and_is_given_back() {
    let instance = Instance::start("pin", "", None).await;
    let limits: Limits = serde_json::from_value(instance.json("/api/v1/limits").await).unwrap();
    let row = limits.limits.iter().find(|row| row.class == "job-submit").unwrap();
    let row = &row.limit;
    let pin = json!({"class": "job-submit", "limit": row.limit, "value": row.min, "for": "1h", "why": "night shift", "who": "ada"});
    let (status, done) = instance.order("/api/v1/pin", &pin).await;
    assert_eq!(status, 200, "{done}");
    let state: State = serde_json::from_value(instance.json("/api/v1/state").await).unwrap();
    let [held] = state.view.pins.as_slice() else { panic!("{:?}", state.view.pins) };
    assert_eq!((held.class.as_str(), held.value, held.why.as_str()), ("job-submit", row.min, "night shift"));
    assert_eq!(held.who, "ada (127.0.0.1)");
    assert!(held.left_s > 3500.0 && held.left_s <= 3600.0);
    let told = instance.json("/api/v1/events?since=1m").await;
    let told = told["events"]
        .as_array()
        .unwrap()
        .iter()
        .find(|event| event["event"] == "mode_change")
        .unwrap()
        .clone();
    assert_eq!((told["why"].as_str(), told["to"].as_str()), (Some("night shift"), Some("manual")));
    let unpin = json!({"class": "job-submit", "limit": row.limit});
    assert_eq!(instance.order("/api/v1/unpin", &unpin).await.0, 200);
    let (status, again) = instance.order("/api/v1/unpin", &unpin).await;
    assert_eq!((status, again["error"].as_str()), (409, Some("not_pinned")));
}

#[tokio::test]
async fn freeze_and_shadow_are_seen_in_the_state() {
    let instance = Instance::start("freeze", "", None).await;
    assert_eq!(instance.order("/api/v1/freeze", &json!({"why": "upgrade"})).await.0, 200);
    assert_eq!(instance.json("/api/v1/state").await["frozen"], true);
    assert_eq!(instance.order("/api/v1/unfreeze", &json!({"why": "done"})).await.0, 200);
    assert_eq!(instance.json("/api/v1/state").await["frozen"], false);
    assert_eq!(
        instance
            .order("/api/v1/mode", &json!({"mode": "shadow", "class": "job-list", "why": "a test"}))
            .await
            .0,
        200
    );
    let state: State = serde_json::from_value(instance.json("/api/v1/state").await).unwrap();
    let shadowed: Vec<&str> = state
        .view
        .classes
        .iter()
        .filter(|class| class.mode == Mode::Shadow)
        .map(|class| class.name.as_str())
        .collect();
    assert_eq!(shadowed, ["job-list"]);
}

#[tokio::test]
async fn an_override_that_cannot_be_is_refused_with_its_remedy_and_changes_nothing() {
    let instance = Instance::start("refuse", "", None).await;
    let pin = |class: &str, value: f64| json!({"class": class, "limit": "in_flight", "value": value, "for": "1h", "why": "x"});
    for (path, order, status, code) in [
        ("/api/v1/pin", pin("no-such", 1.0), 404, "unknown_class"),
        ("/api/v1/pin", pin("job-submit", 1e9), 422, "out_of_bounds"),
        (
            "/api/v1/pin",
            json!({"class": "job-submit", "limit": "in_flight", "value": 1, "for": "soon", "why": "x"}),
            400,
            "order",
        ),
        (
            "/api/v1/pin",
            json!({"class": "job-submit", "limit": "in_flight", "value": 1, "for": "1h", "why": " "}),
            400,
            "order",
        ),
        ("/api/v1/pin", json!({"class": "job-submit"}), 400, "order"),
        ("/api/v1/pin", json!({"klass": "job-submit"}), 400, "order"),
        ("/api/v1/freeze", json!({}), 400, "order"),
        ("/api/v1/unfreeze", json!({"why": "\n"}), 400, "order"),
        ("/api/v1/mode", json!({"mode": "shadow"}), 400, "order"),
        ("/api/v1/freeze", json!([]), 400, "order"),
        ("/api/v1/freeze", json!({"why": "x".repeat(501)}), 400, "order"),
        ("/api/v1/mode", json!({"mode": "open"}), 400, "order"),
    ] {
        let (got, problem) = instance.order(path, &order).await;
        let problem: ProblemBody = serde_json::from_value(problem).unwrap();
        assert_eq!((got, problem.error.as_str()), (status, code), "{path} {order}");
        assert!(!problem.message.is_empty() && !problem.remedy.is_empty());
    }
    let state = instance.json("/api/v1/state").await;
    assert_eq!((&state["pins"], &state["frozen"]), (&json!([]), &json!(false)));
    let modes = state["classes"].as_array().unwrap().iter().map(|class| &class["mode"]);
    assert!(modes.into_iter().all(|mode| mode == "enforce"));
}

#[tokio::test]
async fn requests_of_strangers_are_refused() {
    let instance = Instance::start("strangers", "", None).await;
    let url = |path: &str| format!("{}{path}", instance.admin);
    let status = async |request: reqwest::RequestBuilder| request.send().await.unwrap().status().as_u16();
    let client = &instance.client;
    assert_eq!(status(client.get(url("/api/v1/state")).header("host", "evil.example")).await, 421);
    assert_eq!(status(client.get(url("/metrics")).header("host", "evil.example")).await, 421);
    assert_eq!(status(client.get(url("/readyz")).header("host", "10.0.0.1:9465")).await, 200);
    assert_eq!(status(client.get(url("/api/v1/state")).header("host", "instance.test")).await, 200);
    assert_eq!(status(client.get(url("/api/v1/state")).header("origin", "http://evil.example")).await, 403);
    let freeze = || client.post(url("/api/v1/freeze")).body(r#"{"why": "a test"}"#);
    assert_eq!(status(freeze()).await, 415);
    assert_eq!(status(freeze().header("content-type", "text/plain")).await, 415);
    let json = || freeze().header("content-type", "application/json");
    assert_eq!(status(json().header("origin", "null")).await, 403);
    assert_eq!(status(json().header("sec-fetch-site", "cross-site")).await, 403);
    assert_eq!(status(json().header("x-forwarded-for", "10.0.0.7")).await, 403);
    assert_eq!(status(json().body("x".repeat(20_000))).await, 413);
    assert_eq!(status(client.get(url("/api/v1/freeze"))).await, 405);
    assert_eq!(status(client.request(reqwest::Method::OPTIONS, url("/api/v1/freeze"))).await, 405);
    assert_eq!(status(client.get(url("/api/v2/state"))).await, 404);
    assert_eq!(status(client.get(url("/api/v1/state?x=1"))).await, 400);
    assert_eq!(status(client.get(url("/api/v1/adjustments?limit=0"))).await, 400);
    assert_eq!(status(client.get(url("/api/v1/adjustments?since=yesterday"))).await, 400);
    assert_eq!(instance.json("/api/v1/state").await["frozen"], false);
    assert_eq!(status(json()).await, 200);
}

#[tokio::test]
async fn with_a_token_reading_is_free_and_changes_are_not() {
    let instance = Instance::start("token", "", Some("s3cret")).await;
    assert_eq!(instance.json("/api/v1/state").await["token_required"], true);
    let (status, problem) = instance.order("/api/v1/freeze", &json!({})).await;
    assert_eq!((status, problem["error"].as_str()), (401, Some("token_required")));
    let with = async |token: &str| {
        let request = instance.client.post(format!("{}/api/v1/freeze", instance.admin)).bearer_auth(token);
        request
            .header("content-type", "application/json")
            .body(r#"{"why": "a test"}"#)
            .send()
            .await
            .unwrap()
            .status()
            .as_u16()
    };
    assert_eq!(with("wrong").await, 401);
    assert_eq!(with("s3cret").await, 200);
}

#[tokio::test]
async fn the_proxy_is_alive_and_ready_while_ray_is_away() {
    let mut instance = Instance::start("away", "[probe]\ninterval = '100ms'\ntimeout = '90ms'", None).await;
    instance.head.take();
    eventually("the head's absence is noticed", async || {
        (!instance.json("/api/v1/state").await["upstream_problem"].is_null()).then_some(())
    })
    .await;
    assert_eq!(instance.get("/livez").await.0, 200);
    assert_eq!(instance.get("/readyz").await.0, 200);
}

/// What the loop changed is listed as it stands in the adjustment log: by class, newest last, with the
/// reading that caused it.
#[tokio::test]
async fn an_adjustment_is_listed_with_its_reason() {
    let config = "[slo]\njob-list = 'p95 1ms'\n[control]\ninner_period = '50ms'\n\
                  [class.job-list]\ncoalesce = 'off'\nin_flight = { initial = 8, min = 1, max = 12 }";
    let instance = Instance::start("adjust", config, None).await;
    let cut = eventually("a class that misses its objective is cut", async || {
        let ask = || instance.ask("/api/jobs/");
        tokio::join!(ask(), ask(), ask(), ask(), ask(), ask());
        let path = "/api/v1/adjustments?class=job-list&limit=1000";
        let listed: Adjustments = serde_json::from_value(instance.json(path).await).unwrap();
        assert!(listed.adjustments.iter().all(|row| row.class == "job-list"));
        assert!(listed.adjustments.is_sorted_by_key(|row| row.time));
        listed.adjustments.into_iter().find(|row| row.new < row.old)
    })
    .await;
    assert!(!cut.signals.is_empty(), "{cut:?}");
    assert!(!cut.reason.is_empty() && cut.new >= 1.0, "{cut:?}");
    let none: Adjustments =
        serde_json::from_value(instance.json("/api/v1/adjustments?class=profiling").await).unwrap();
    assert!(none.adjustments.is_empty());
    let later = instance.json("/api/v1/adjustments?since=2999-01-01T00:00:00Z").await;
    assert_eq!(later["adjustments"].as_array().unwrap().len(), 0);
}

#[tokio::test]
async fn top_clients_are_told_by_address_to_callers_that_may_change_anything_and_by_digest_to_others() {
    let instance = Instance::start("clients", "", Some("s3cret")).await;
    for _ in 0..3 {
        let url = format!("http://{}/api/v0/actors", instance.proxy);
        instance.client.get(url).bearer_auth("their-own-token").send().await.unwrap();
    }
    instance.ask("/api/version").await;
    let closed = instance.json("/api/v1/clients").await;
    let first = &closed["clients"][0];
    assert_eq!((&first["asked"], &first["classes"][0]["class"]), (&json!(3), &json!("state-light")));
    assert_eq!(first["classes"][0]["routes"][0], "/api/v0/actors");
    assert!(first["address"].is_null() && first["client"].as_str().unwrap().len() == 16);
    assert_eq!(first["credential"].as_str().unwrap().len(), 8);
    let open =
        instance.client.get(format!("{}/api/v1/clients?limit=1", instance.admin)).bearer_auth("s3cret");
    let open = open.send().await.unwrap().text().await.unwrap();
    assert!(open.contains("\"address\":\"127.0.0.1\"") && !open.contains("their-own-token"), "{open}");
    for page in ["/metrics", "/api/v1/clients", "/api/v1/discovery", "/api/v1/events"] {
        let (_, page) = instance.get(page).await;
        assert!(!page.contains("their-own-token"));
    }
    assert!(!instance.get("/metrics").await.1.contains(first["client"].as_str().unwrap()));
}

#[tokio::test]
async fn what_no_class_names_is_discovered_with_its_ids_folded() {
    let instance = Instance::start("discovery", "mode = 'shadow'", None).await;
    for id in 0..5 {
        instance.ask(&format!("/api/internal/{id}/report")).await;
        instance.ask("/api/jobs/").await;
    }
    let seen = instance.json("/api/v1/discovery").await;
    let routes = seen["routes"].as_array().unwrap();
    let own = routes.iter().find(|route| route["pattern"] == "/api/internal/{id}/report").unwrap();
    assert_eq!((&own["asked"], &own["unlisted"]["method"]), (&json!(5), &json!("GET")));
    let list = routes.iter().find(|route| route["pattern"] == "/api/jobs/").unwrap();
    assert!(list["unlisted"].is_null());
    assert_eq!((&list["class"], &list["clients"]), (&json!("job-list"), &json!(1)));
    let class =
        seen["classes"].as_array().unwrap().iter().find(|class| class["class"] == "job-list").unwrap();
    assert_eq!((&class["asked"], &class["shadow"]), (&json!(5), &json!(true)));
}

#[tokio::test]
async fn a_reload_is_carried_out_or_refused_with_every_reason() {
    let instance = Instance::start("reload", "", None).await;
    let before = instance.json("/api/v1/state").await["config"].clone();
    let text = std::fs::read_to_string(&instance.file).unwrap();
    std::fs::write(&instance.file, format!("{text}[slo]\njob-list = 'p95 3s'\n")).unwrap();
    let (status, done) = instance.order("/api/v1/reload", &json!({"why": "slower lists are fine"})).await;
    assert_eq!(status, 200, "{done}");
    let state = instance.json("/api/v1/state").await;
    assert_ne!(state["config"], before);
    assert_eq!(state["config"], done["config"]);
    let list = state["classes"].as_array().unwrap().iter().find(|class| class["name"] == "job-list").unwrap();
    assert_eq!(list["slo_s"], 3.0);

    std::fs::write(&instance.file, format!("{text}[slo]\njob-lost = 'p95 3s'\n[probe]\ninterval = '1'\n"))
        .unwrap();
    let (status, refused) = instance.order("/api/v1/reload", &json!({})).await;
    assert_eq!((status, &refused["error"]), (422, &json!("config_rejected")));
    let message = refused["message"].as_str().unwrap();
    assert!(message.contains("job-lost") && message.contains("still using the previous one"), "{message}");
    assert_eq!(instance.json("/api/v1/state").await["config"], done["config"]);

    std::fs::remove_file(&instance.file).unwrap();
    let (status, gone) = instance.order("/api/v1/reload", &json!({})).await;
    assert_eq!((status, &gone["error"]), (422, &json!("config_missing")));
    assert!(gone["message"].as_str().unwrap().contains("does not exist"), "{gone}");
    assert_eq!(instance.json("/api/v1/state").await["config"], done["config"]);
    let events = instance.json("/api/v1/events").await.to_string();
    assert!(events.contains("slower lists are fine"), "{events}");
}

/// Every answer that a test of this file fetches is held to the description by `Instance`; here are all of them, with
/// something in each list.
#[tokio::test]
async fn every_answer_is_as_described() {
    let instance = Instance::start("openapi", "[probe]\ninterval = '100ms'\ntimeout = '90ms'", None).await;
    assert_eq!(instance.json("/openapi.json").await, *DESCRIPTION);
    instance.ask("/api/jobs/").await;
    instance.ask("/api/internal/7/report").await;
    let limits: Limits = serde_json::from_value(instance.json("/api/v1/limits").await).unwrap();
    let row = limits.limits.iter().find(|row| row.class == "job-submit").unwrap();
    let row = &row.limit;
    let pin =
        json!({"class": "job-submit", "limit": row.limit, "value": row.min, "for": "1h", "why": "a test"});
    assert_eq!(instance.order("/api/v1/pin", &pin).await.0, 200);
    assert_eq!(instance.order("/api/v1/alerts/test", &json!({})).await.0, 409);
    eventually("a sample of the history", async || {
        let history = instance.json("/api/v1/history").await;
        history["times_ms"].as_array().is_some_and(|times| !times.is_empty()).then_some(())
    })
    .await;
    for operation in OPERATIONS.iter().filter(|operation| operation.method == "GET") {
        assert_eq!(instance.get(operation.path).await.0, 200, "{}", operation.path);
    }
    let [state, clients, discovery, events] = [
        instance.json("/api/v1/state").await,
        instance.json("/api/v1/clients").await,
        instance.json("/api/v1/discovery").await,
        instance.json("/api/v1/events").await,
    ];
    for (answer, list) in [
        (&state, "signals"),
        (&state, "classes"),
        (&state, "modules"),
        (&state, "pins"),
        (&state, "listeners"),
        (&clients, "clients"),
        (&discovery, "classes"),
        (&discovery, "routes"),
        (&events, "events"),
    ] {
        assert!(!answer[list].as_array().unwrap().is_empty(), "{list}: {answer}");
    }
    assert_eq!(instance.get("/api/v1/state?x=1").await.0, 400, "a refusal is described too");
}

/// Each field that a schema loses is noticed; so is one that is required and not sent, and a value of another type.
#[tokio::test]
async fn a_schema_that_lacks_a_field_is_noticed() {
    let instance = Instance::start("lacking", "", None).await;
    let state = instance.json("/api/v1/state").await;
    let properties = |schema: &str| {
        DESCRIPTION["components"]["schemas"][schema]["properties"].as_object().unwrap().clone()
    };
    for schema in ["State", "Class", "Limit", "Signal", "Module", "Ray"] {
        for field in properties(schema).keys() {
            let mut lacking = DESCRIPTION.clone();
            let of = &mut lacking["components"]["schemas"][schema];
            of["properties"].as_object_mut().unwrap().remove(field).unwrap();
            of["required"].as_array_mut().unwrap().retain(|name| name != field);
            let fault = fits_named(&lacking, "State", &state).unwrap_err();
            assert!(fault.contains(&format!("no schema names `{field}`")), "{schema}: {fault}");
        }
    }
    for field in properties("State").keys() {
        let mut short = state.clone();
        short.as_object_mut().unwrap().remove(field);
        assert!(fits_named(&DESCRIPTION, "State", &short).unwrap_err().contains("`required`"), "{field}");
    }
    for (field, other) in
        [("time", json!("yesterday")), ("table", json!(-1)), ("frozen", json!(0)), ("pins", json!({}))]
    {
        let mut other_type = state.clone();
        other_type[field] = other;
        assert!(fits_named(&DESCRIPTION, "State", &other_type).is_err(), "{field}");
    }
}

/// All kinds of a limit and of a loop. Each is made from the one before, so that the compiler asks for one that is new.
fn limits_and_loops() -> Vec<(LimitKind, LoopKind)> {
    let limits = std::iter::successors(Some(LimitKind::InFlight), |limit| match limit {
        LimitKind::InFlight => Some(LimitKind::Rate),
        LimitKind::Rate => Some(LimitKind::ModuleInFlight),
        LimitKind::ModuleInFlight => None,
    });
    let loops = || {
        std::iter::successors(Some(LoopKind::Inner), |of| match of {
            LoopKind::Inner => Some(LoopKind::Outer),
            LoopKind::Outer => Some(LoopKind::Backlog),
            LoopKind::Backlog => None,
        })
    };
    limits.flat_map(|limit| loops().map(move |of| (limit, of))).collect()
}

#[test]
fn an_adjustment_of_every_limit_by_every_loop_is_as_described() {
    let time = WallMs(1_800_000_000_000);
    for (limit, of) in limits_and_loops() {
        let adjustment: Adjustment = serde_json::from_value(json!({
            "class": "job-list", "limit": limit, "old": 4.0, "new": 2.5, "law": "aimd", "terms": "no_information",
            "signals": [{
                "name": "head_cpu", "value": 97.0, "target": 80.0, "pressure": 1.2125, "age_ms": 400,
                "source": "metrics", "unit": "%", "forecast": {"value": 99.0, "in_s": 5.0},
            }],
            "guardrail": "slew", "mode": "enforce", "loop": of, "policy_version": 1,
            "apportioned": {
                "module": "JobHead", "pressure": 1.2, "index": 0, "allotted": 0.5, "seen": 1.1,
                "claims": [{"want": 0.7, "weight": 8.0, "floor": 0.1}],
            },
            "derivation": {"by": "given", "why": "a test"}, "decided_by": "a", "other": {"loop": of, "value": 3.0},
            "reason": "cut",
        }))
        .unwrap();
        let row = serde_json::to_value(AdjustmentRow::new(time, &adjustment)).unwrap();
        fits_named(&DESCRIPTION, "Adjustment", &row)
            .unwrap_or_else(|fault| panic!("{limit:?} {of:?}: {fault}"));
        let row = EventRow { time, event: Event::Adjustment(Box::new(adjustment)) };
        fits_named(&DESCRIPTION, "Event", &serde_json::to_value(row).unwrap())
            .unwrap_or_else(|fault| panic!("{limit:?} {of:?}: {fault}"));
    }
}

#[test]
fn an_event_of_every_kind_is_as_described() {
    let log = std::fs::read_to_string("tests/fuzz/adjustments.jsonl").unwrap();
    let logged = log.lines().filter_map(|line| serde_json::from_str::<LoggedEvent>(line).ok());
    let others = [
        json!({"event": "stop", "reason": "SIGTERM"}),
        json!({
            "event": "shed", "request": "r", "class": "job-list", "module": "JobHead", "cause": "class_rate",
            "shadow": false, "client": "00ff", "retry_after_s": 2, "table": 3, "in_flight_limit": 4.0, "in_flight": 4,
            "rate_limit": 2.0, "work_s": 0.5, "work_limit_s": 1.0, "waited_ms": 10, "via": "ratelimit_service",
        }),
        json!({
            "event": "shed_summary", "class": "job-list", "interval_ms": 10_000, "offered": 9, "served": 5,
            "causes": [{"label": "class_rate", "count": 4}], "shadow": 0, "clients": [{"label": "00ff", "count": 4}],
        }),
        json!({
            "event": "mode_change", "class": "all", "limit": "rate", "from": "enforce", "to": "manual", "value": 2.0,
            "who": "ana", "why": "a test", "until": "2026-12-01T00:00:00.000Z",
        }),
        json!({
            "event": "config_change", "accepted": true, "policy_version": 2, "source": "a file", "changes": ["one"],
            "problems": [],
        }),
        json!({"event": "upstream", "up": false, "problem": "no connection"}),
        json!({
            "event": "leadership", "role": "cut_off", "leader": "a", "token": 1, "replicas": 2, "problem": "timeout",
        }),
        json!({"event": "gap", "lost": 1, "torn_bytes": 7, "why": "the queue was full"}),
    ];
    let made = others.map(|event| serde_json::from_value::<Event>(event).unwrap());
    let mut seen = BTreeSet::new();
    for event in logged.map(|line| line.event).chain(made) {
        seen.insert(event.name());
        let row = serde_json::to_value(EventRow { time: WallMs(0), event }).unwrap();
        fits_named(&DESCRIPTION, "Event", &row).unwrap_or_else(|fault| panic!("{fault}"));
    }
    assert_eq!(seen, BTreeSet::from(Event::NAMES));
}

#[test]
fn every_schema_of_the_description_is_there_and_says_what_it_is() {
    let schemas = DESCRIPTION["components"]["schemas"].as_object().unwrap();
    let text = DESCRIPTION.to_string();
    for reference in text.split("#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(schemas.contains_key(name), "{name}");
    }
    for (name, schema) in schemas {
        assert!(schema["description"].is_string(), "{name}");
        assert!(text.contains(&format!("#/components/schemas/{name}\"")), "{name} is used");
        assert!(!name.ends_with(|last: char| last.is_ascii_digit()), "{name}: two types of one name");
        for (field, of) in schema["properties"].as_object().into_iter().flatten() {
            assert!(of["description"].is_string(), "{name}.{field}");
        }
    }
    assert!(!text.contains("[`"), "a link to a Rust item leads nowhere here");
}

/// What must hold of the figures in every state: no part is more than the whole.
fn figures_add_up(state: &Value, clients: &Value, history: &Value, what: &str) {
    let number =
        |of: &Value, name: &str| of[name].as_f64().unwrap_or_else(|| panic!("{what}: no {name} in {of}"));
    for class in state["classes"].as_array().unwrap() {
        let of = |name| number(class, name);
        assert!(of("admitted") + of("shed") <= of("offered"), "{what}: {class}");
        assert!(of("failed") <= of("offered") - of("shed"), "{what}: {class}");
        assert!(of("shadow_shed") <= of("admitted"), "{what}: {class}");
        for rate in ["offered_per_s", "admitted_per_s", "shed_per_s", "failed_per_s"] {
            assert!(of(rate) >= 0.0, "{what}: {class}");
        }
        for limit in class["limits"].as_array().unwrap() {
            let of = |name| number(limit, name);
            assert!(of("min") <= of("value") && of("value") <= of("max"), "{what}: {limit}");
        }
        let columns = &history["classes"][class["name"].as_str().unwrap()];
        for name in
            ["offered", "admitted", "shed", "failed", "latency_p50_s", "latency_p95_s", "latency_p99_s"]
        {
            assert_eq!(
                columns[name].as_array().unwrap().len(),
                history["times_ms"].as_array().unwrap().len()
            );
        }
        let percentile = |name: &str| columns[name].as_array().unwrap().iter().map(Value::as_f64);
        let (p50, p95) = (percentile("latency_p50_s"), percentile("latency_p95_s"));
        for ((p50, p95), p99) in p50.zip(p95).zip(percentile("latency_p99_s")) {
            assert!(p50 <= p95 && p95 <= p99, "{what}: {p50:?} {p95:?} {p99:?}");
        }
    }
    for client in clients["clients"].as_array().unwrap() {
        for counts in client["classes"].as_array().unwrap().iter().chain([client]) {
            let of = |name| number(counts, name);
            assert!(
                of("admitted") + of("shed") + of("shared") + of("left") <= of("asked"),
                "{what}: {counts}"
            );
            assert!(of("failed") <= of("asked") - of("shed") - of("shared"), "{what}: {counts}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn figures_add_up_in_every_state() {
    let config = "[probe]\ninterval = '100ms'\ntimeout = '90ms'\n[class.job-list]\nrate = { initial = '2/s', min = '2/s', max = '2/s' }\nqueue = { len = 64, wait = '1s' }\ncoalesce = 'off'";
    let mut instance = Instance::start("figures", config, None).await;
    let checked = async |instance: &Instance, what: &str| {
        let state = instance.json("/api/v1/state").await;
        let (clients, history) =
            (instance.json("/api/v1/clients").await, instance.json("/api/v1/history").await);
        figures_add_up(&state, &clients, &history, what);
        state
    };
    let total = |state: &Value, name: &str| -> u64 {
        state["classes"].as_array().unwrap().iter().filter_map(|class| class[name].as_u64()).sum()
    };
    checked(&instance, "idle").await;
    let flood = async |instance: &Instance| {
        let asks = (0..40).map(|_| instance.ask("/api/jobs/"));
        futures_of(asks).await;
    };
    flood(&instance).await;
    let state = eventually("sheds are counted", async || {
        let state = checked(&instance, "flood").await;
        (total(&state, "shed") > 0).then_some(state)
    })
    .await;
    assert_eq!(total(&state, "failed"), 0, "a shed is no failure");
    instance.order("/api/v1/mode", &json!({"mode": "shadow", "why": "a test"})).await;
    flood(&instance).await;
    checked(&instance, "shadow").await;
    instance.order("/api/v1/mode", &json!({"mode": "enforce", "why": "a test"})).await;
    instance.order("/api/v1/freeze", &json!({"why": "a test"})).await;
    flood(&instance).await;
    checked(&instance, "frozen").await;
    instance.head.take();
    eventually("requests fail while Ray is down, and none is called shed", async || {
        instance.ask("/api/jobs/a").await;
        let state = checked(&instance, "Ray is down").await;
        (total(&state, "failed") >= 3 && !state["upstream_problem"].is_null()).then_some(())
    })
    .await;
    let state = checked(&instance, "Ray is down").await;
    let asked =
        state["classes"].as_array().unwrap().iter().find(|class| class["name"] == "job-status").unwrap();
    assert_eq!((asked["shed"].as_u64(), asked["failed"].as_u64() >= Some(3)), (Some(0), true), "{asked}");
    let metrics = instance.get("/metrics").await.1;
    assert!(metrics.contains("reason=\"upstream_unreachable\""), "and /metrics says why");
}

/// All at once.
async fn futures_of<F: Future>(all: impl IntoIterator<Item = F>) {
    let mut all: Vec<std::pin::Pin<Box<F>>> = all.into_iter().map(Box::pin).collect();
    std::future::poll_fn(|context| {
        all.retain_mut(|one| one.as_mut().poll(context).is_pending());
        if all.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}
