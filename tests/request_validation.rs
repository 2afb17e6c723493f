//! Whatever a client may write reaches Ray as Ray would have read it, and what is refused is refused with
//! a reason: targets, headers, heads that are too long, pages of other origins.
#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

#[path = "proxy/rig.rs"]
mod rig;

use rayguard::core::policy::{Bounds, PerClientLimits};
use rayguard::core::request::catalogue::Surface;
use rayguard::core::request::classify::{Classifier, Rule};
use rayguard::proxy::h1_connection::AnswerBounds;
use rayguard::proxy::listen::{self, Listener};
use rayguard::proxy::state::ListenerState;
use rayguard::proxy::upstream::Options;
use rig::{Client, Rig, Setup, class, get, until};
use std::sync::Arc;
use tokio::net::TcpListener;

/// A proxy before Serve, with a route of the operator's.
async fn serve() -> Rig {
    let rule = Rule {
        surface: Surface::Serve,
        method: None,
        path: "/llm/{*rest}".into(),
        header: None,
        class: "state-heavy".into(),
    };
    Rig::with(Setup { surface: Surface::Serve, rules: vec![rule], ..Setup::default() }).await
}

#[tokio::test]
async fn any_target_reaches_ray_as_it_was_sent() {
    for rig in [Rig::start().await, serve().await] {
        let mut client = rig.client().await;
        for target in [
            "/api/jobs/a%5cb",
            "/api/jobs/a\\b",
            "/api/jobs/%",
            "/api/jobs/%zz?%",
            "/api/jobs/%FC",
            "/api/jobs/..",
            "/api/jobs/%2e%2e/logs",
            "/api/jobs/%00%0d%0a",
            "//api///jobs/",
            "/api/jobs/\"{x}\"|^~",
            "/api/version?a={b}|^`\\&&a=;=%",
            "*",
        ] {
            let method = if target == "*" { "OPTIONS" } else { "GET" };
            client.send(format!("{method} {target} HTTP/1.1\r\nhost: ray\r\n\r\n")).await;
            assert_eq!(client.answer().await.status, 200, "{target}");
            assert_eq!(rig.ray.seen().last().unwrap().line(), format!("{method} {target} HTTP/1.1"));
        }
    }
}

#[tokio::test]
async fn what_ray_reads_in_a_target_and_hyper_does_not_is_escaped() {
    let rig = Rig::start().await;
    for (sent, seen) in [
        ("/api/jobs/<a>`b`", "/api/jobs/%3Ca%3E%60b%60"),
        ("/api/version?q=\"a\"&b=<c>", "/api/version?q=%22a%22&b=%3Cc%3E"),
        ("/api/jobs/\"a\"?`=\"", "/api/jobs/\"a\"?`=%22"),
        ("/api/version#a\"b", "/api/version"),
        ("http://ray:80/api/version?<", "/api/version?%3C"),
    ] {
        // In one piece, and byte by byte: what is behind it stays where it is.
        let request = format!("POST {sent} HTTP/1.1\r\nhost: ray\r\ncontent-length: 3\r\n\r\n<\"`")
            + &get("/api/version", &[]);
        for pieces in [vec![request.as_bytes()], request.as_bytes().chunks(7).collect()] {
            let mut client = rig.client().await;
            for piece in pieces {
                client.send(piece).await;
                tokio::task::yield_now().await;
            }
            for _ in 0..2 {
                assert_eq!(client.answer().await.status, 200, "{sent}");
            }
            let all = rig.ray.seen();
            let [.., first, second] = &all[..] else { panic!("{all:?}") };
            assert_eq!((first.line(), &first.body[..]), (&*format!("POST {seen} HTTP/1.1"), &b"<\"`"[..]));
            assert_eq!(second.line(), "GET /api/version HTTP/1.1");
        }
    }
}

#[tokio::test]
async fn every_head_that_is_refused_is_told_why() {
    let rig = Rig::start().await;
    let many = "x-y: z\r\n".repeat(101);
    for (request, status, why) in [
        (
            "GET /a\u{7f} HTTP/1.1\r\nhost: ray\r\n\r\n".to_owned(),
            400,
            "a character that HTTP does not allow",
        ),
        (
            "GET / HTTP/1.1\r\nhost: ray\r\nx y: z\r\n\r\n".to_owned(),
            400,
            "a character that HTTP does not allow",
        ),
        ("G(T / HTTP/1.1\r\nhost: ray\r\n\r\n".to_owned(), 400, "a character that HTTP does not allow"),
        ("GET head:8265 HTTP/1.1\r\nhost: ray\r\n\r\n".to_owned(), 400, ""),
        ("GET / HTTP/3.0\r\nhost: ray\r\n\r\n".to_owned(), 400, ""),
        (format!("GET / HTTP/1.1\r\nhost: ray\r\n{many}\r\n"), 431, "more than 100 headers"),
        (get(&format!("/?{}", "a".repeat(8300)), &[]), 414, "longer than 8190 bytes"),
        (get("http://other/", &[]), 400, "different hosts"),
    ] {
        // On a connection that has answered before, too.
        for before in [0, 1] {
            let mut client = rig.client().await;
            for _ in 0..before {
                client.send(get("/api/version", &[])).await;
                assert_eq!(client.answer().await.status, 200);
            }
            client.send(&request).await;
            let answer = client.answer().await;
            assert_eq!(
                (answer.status, answer.header("x-rayguard-reason")),
                (status, Some(if status == 400 { "malformed" } else { "too_large" })),
                "{request}"
            );
            assert!(
                answer.text().contains(why) && answer.text().starts_with("rayguard: "),
                "{}",
                answer.text()
            );
        }
    }
}

#[tokio::test]
async fn a_bare_answer_of_rays_is_never_taken_for_a_refusal_of_ours() {
    let rig = Rig::start().await;
    let mut client = rig.client().await;
    let bare = "x-do: raw:HTTP/1.1 404 Not Found\\r\\ncontent-length: 0\\r\\n\\r\\n";
    client.send(get("/api/version", &[bare]).repeat(2)).await;
    for _ in 0..2 {
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.header("x-rayguard-reason")), (404, None));
    }
}

#[tokio::test]
async fn the_key_header_is_for_the_proxy_alone_whether_it_knows_keys_or_not() {
    let rig = Rig::start().await;
    assert_eq!(rig.get("/api/version", &["X-Rayguard-Key: secret"]).await.status, 200);
    assert_eq!(rig.ray.seen()[0].header("x-rayguard-key"), None);
}

#[tokio::test]
async fn ray_is_told_one_list_of_all_forwarding_lines() {
    let rig = Rig::start().await;
    for (lines, told) in [
        (
            &["x-forwarded-for: 6.6.6.6", "x-forwarded-for: 203.0.113.9"][..],
            "6.6.6.6, 203.0.113.9, 127.0.0.1",
        ),
        (&["x-forwarded-for:"], "127.0.0.1"),
        (&["x-forwarded-for: 203.0.113.9,"], "203.0.113.9, 127.0.0.1"),
        (&["x-forwarded-for: caf\u{e9}, 203.0.113.9"], "caf\u{e9}, 203.0.113.9, 127.0.0.1"),
    ] {
        assert_eq!(rig.get("/api/version", lines).await.status, 200);
        let seen = rig.ray.seen().pop().unwrap();
        let found: Vec<_> = seen.head.lines().filter(|line| line.starts_with("x-forwarded-for")).collect();
        assert_eq!(found, [format!("x-forwarded-for: {told}")]);
    }
}

#[tokio::test]
async fn a_path_with_dot_segments_is_held_to_the_limits_of_what_it_reaches() {
    let rig = Rig::with_policy(|policy| {
        let list = &mut policy.classes[class("job-list").index()];
        list.in_flight = Bounds::fixed(1.0);
        list.queue.len_max = 0;
        list.coalesce = None;
    })
    .await;
    let mut held = rig.client().await;
    held.send(get("/api/jobs/", &["x-do: hold"])).await;
    until("it is under way", || rig.in_flight("job-list") == 1).await;
    for path in ["/api/jobs/.", "/api/jobs/%2e", "/api/jobs/x/..", "/%61pi/./jobs/"] {
        let refused = rig.get(path, &[]).await;
        assert_eq!(
            (refused.status, refused.header("x-rayguard-reason")),
            (503, Some("class_in_flight")),
            "{path}"
        );
    }
    assert_eq!(rig.get("/api/jobs/%2e%2e", &[]).await.status, 200, "one job, to every reader");
}

#[tokio::test]
async fn an_answer_whose_head_is_too_long_is_said_to_be_and_by_which_bound() {
    let many =
        format!("x-do: raw:HTTP/1.1 200 OK\\r\\n{}content-length: 0\\r\\n\\r\\n", "x: y\\r\\n".repeat(150));
    let large = format!(
        "x-do: raw:HTTP/1.1 200 OK\\r\\nx: {}\\r\\ncontent-length: 0\\r\\n\\r\\n",
        "y".repeat(40_000)
    );
    let rig = Rig::with(Setup {
        options: Options { answer: AnswerBounds { headers: 100, bytes: 16 << 10 }, ..Options::default() },
        ..Setup::default()
    })
    .await;
    for head in [&many, &large] {
        let answer = rig.get("/api/version", &[head]).await;
        assert_eq!((answer.status, answer.header("x-rayguard-reason")), (502, Some("answer_too_large")));
        assert!(
            answer.text().contains("more than 100 headers (`http.answer_headers_max`)"),
            "{}",
            answer.text()
        );
    }
    let wide = AnswerBounds { headers: 200, bytes: 128 << 10 };
    let rig =
        Rig::with(Setup { options: Options { answer: wide, ..Options::default() }, ..Setup::default() })
            .await;
    for head in [&many, &large] {
        assert_eq!(rig.get("/api/version", &[head]).await.status, 200);
    }
}

#[tokio::test]
async fn a_target_may_be_as_long_as_the_server_behind_reads() {
    let rig = serve().await;
    for length in [9_000, 65_000] {
        let path = format!("/search?q={}", "a".repeat(length));
        assert_eq!(rig.get(&path, &[]).await.status, 200, "{length}");
    }
    assert_eq!(rig.get(&format!("/?{}", "a".repeat(66_000)), &[]).await.status, 414);
    let dashboard = Rig::start().await;
    let longest = format!("/api/version?{}", "a".repeat(8190 - 13));
    assert_eq!(dashboard.get(&longest, &[]).await.status, 200);
    assert_eq!(dashboard.get(&format!("{longest}a"), &[]).await.status, 414);
}

#[tokio::test]
async fn a_page_of_another_origin_reads_a_refusal_and_its_preflight_always_passes() {
    let rig = Rig::with(Setup {
        surface: Surface::Serve,
        policy: {
            let mut policy = rig::policy();
            let serve = &mut policy.classes[class("serve").index()];
            serve.in_flight = Bounds::fixed(1.0);
            serve.queue.len_max = 0;
            let module = serve.module.index();
            policy.modules[module].in_flight = Bounds::fixed(1.0);
            policy
        },
        ..Setup::default()
    })
    .await;
    let mut held = rig.client().await;
    held.send(get("/v1/chat", &["x-do: hold"])).await;
    until("it is under way", || rig.in_flight("serve") == 1).await;
    let origin = "origin: https://chat.example";
    let refused = rig.get("/v1/chat", &[origin]).await;
    assert_eq!(refused.status, 503);
    assert_eq!(refused.header("access-control-allow-origin"), Some("*"));
    assert!(refused.header("access-control-expose-headers").unwrap().contains("retry-after"));
    assert!(refused.header("retry-after").is_some());
    assert_eq!(
        rig.get("/v1/chat", &[]).await.header("access-control-allow-origin"),
        None,
        "no page, no word"
    );
    let preflight = format!(
        "OPTIONS /v1/chat HTTP/1.1\r\nhost: ray\r\n{origin}\r\naccess-control-request-method: POST\r\n\r\n"
    );
    let passed = rig.ask(&preflight).await;
    assert_eq!(
        (passed.status, passed.header("access-control-allow-origin")),
        (200, None),
        "Ray's own answer"
    );
    let malformed = rig.ask(&format!("GET http://other/ HTTP/1.1\r\nhost: ray\r\n{origin}\r\n\r\n")).await;
    assert_eq!((malformed.status, malformed.header("access-control-allow-origin")), (400, Some("*")));
    let long = rig.get(&format!("/?{}", "a".repeat(66_000)), &[origin]).await;
    assert_eq!((long.status, long.header("access-control-allow-origin")), (414, Some("*")));
    let lines: Vec<String> = (0..200).map(|at| format!("x-{at}: a")).collect();
    let mut lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    lines.push(origin);
    let many = rig.get("/", &lines).await;
    assert_eq!((many.status, many.header("access-control-allow-origin")), (431, Some("*")));
}

#[tokio::test]
async fn a_head_that_repeats_the_last_is_taken_for_no_other_and_for_no_other_configuration() {
    const STATUS: &str = "/api/jobs/raysubmit_1";
    let rig = Rig::start().await;
    let state = ListenerState::new(Arc::clone(&rig.proxy), Arc::clone(&rig.routing));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = Client::connect(listener.local_addr().unwrap()).await;
    let tasks = rig.proxy.tasks.clone();
    rig.proxy.tasks.spawn(listen::serve(
        listener,
        Arc::clone(&state),
        tasks,
        listen::ListenerLimits::default(),
    ));
    let of = |address: &str| get(STATUS, &[&format!("x-forwarded-for: {address}")]);
    for address in ["192.0.2.1", "192.0.2.1", "192.0.2.2", "192.0.2.2", "192.0.2.1"] {
        client.send(of(address)).await;
        assert_eq!(client.answer().await.status, 200);
    }
    let (clients, _) = rig.proxy.usage().clients(9, rig.proxy.clock.now());
    let mut asked: Vec<u64> = clients.iter().map(|client| client.counts.asked).collect();
    asked.sort_unstable();
    assert_eq!(asked, [2, 3], "each asked for itself");

    let blocks = Rule {
        surface: Surface::Dashboard,
        method: None,
        path: STATUS.into(),
        header: None,
        class: "blocked".into(),
    };
    let classifier = Classifier::new(&rig.proxy.policy, Surface::Dashboard, &[blocks]).unwrap();
    let routing = Arc::new(rig.routing.with_classifier(classifier));
    state.store(Arc::new(ListenerState { proxy: Arc::clone(&rig.proxy), routing }));
    client.send(of("192.0.2.1")).await;
    assert_eq!(client.answer().await.status, 404, "blocked since");

    let doubtful = of("192.0.2.1").replace(": 192.0.2.1", ":\n192.0.2.1");
    client.send(doubtful).await;
    assert_eq!(client.answer().await.status, 400, "a head of the same length is looked at");
    assert_eq!(rig.ray.count(), 5);
}

#[tokio::test]
async fn an_invented_credential_wins_no_place() {
    let rig = Rig::with_policy(|policy| {
        policy.classes[class("log-stream").index()].per_client =
            PerClientLimits { rate: None, in_flight: Some(2) };
    })
    .await;
    let mut held = Vec::new();
    let mut statuses = Vec::new();
    for at in 0..5 {
        let mut client = rig.client().await;
        client
            .send(get(
                "/api/v0/logs/stream",
                &["x-do: stream", &format!("authorization: Bearer invented-{at}")],
            ))
            .await;
        let head = client.head().await.unwrap();
        statuses.push(head.split(' ').nth(1).unwrap().to_owned());
        held.push(client);
    }
    assert_eq!(statuses, ["200", "200", "429", "429", "429"]);
}

#[tokio::test]
async fn clients_behind_a_balancer_have_a_bound_on_connections_each() {
    let address = rayguard::config::settings::Address::Tcp("127.0.0.1:0".parse().unwrap());
    let listener = Listener::bind(&address).await.unwrap().with_proxy_protocol(true);
    let bounds =
        listen::ListenerLimits { connections_per_address_max: 2, ..listen::ListenerLimits::default() };
    let rig = Rig::on(listener, Setup { bounds, ..Setup::default() }).await;
    let mut held: Vec<Client<_>> = Vec::new();
    let mut knock = async |client: &str| {
        let mut line = rig.client().await;
        let family = if client.contains(':') { "TCP6" } else { "TCP4" };
        line.try_send(format!("PROXY {family} {client} {client} 5 80\r\n{}", get("/api/version", &[]))).await;
        let answer = line.try_answer().await.map(|answer| answer.status);
        held.push(line);
        answer
    };
    for client in ["192.0.2.7", "2001:db8::1"] {
        assert_eq!(
            [knock(client).await, knock(client).await, knock(client).await],
            [Some(200), Some(200), None]
        );
    }
    assert_eq!(knock("192.0.2.8").await, Some(200), "somebody else behind the same balancer");
    assert_eq!(knock("2001:db8::ffff").await, None, "the same /64");
}
