//! What the operator's file may say, what it may not, and how it is told.

use std::time::Duration;

use proptest::prelude::*;

use super::settings::{Address, Login, NotifyUrl, Secret};
use super::*;
use rayguard_core::admission::table::Mode;
use rayguard_core::policy::{Bounds, Class, Kind, Law, SignalSource, Treatment};
use rayguard_core::request::catalogue::{CLASSES, Surface};

fn settings(text: &str) -> Settings {
    parse(text, "test.toml", &Overrides::default()).unwrap_or_else(|problems| panic!("{problems}"))
}

/// Keys and messages of all problems.
fn problems(text: &str) -> Vec<(String, String)> {
    match parse(text, "test.toml", &Overrides::default()) {
        Ok(_) => Vec::new(),
        Err(problems) => {
            // Whatever is wrong can be drawn.
            let _ = problems.to_string();
            problems.list().iter().map(|problem| (problem.key.clone(), problem.message.clone())).collect()
        }
    }
}

/// Asserts that `text` has exactly one problem, at `key`, whose message holds `part`.
#[track_caller]
fn refused(text: &str, key: &str, part: &str) {
    let found = problems(text);
    assert_eq!(found.len(), 1, "{text}\n{found:#?}");
    assert_eq!(found[0].0, key, "{text}\n{found:#?}");
    assert!(found[0].1.contains(part), "{text}\n{found:#?}");
}

fn class<'a>(settings: &'a Settings, name: &str) -> &'a Class {
    settings.policy.classes.iter().find(|class| &*class.name == name).unwrap()
}

#[test]
fn without_a_file_the_defaults_hold_and_lead_from_8266_to_8265() {
    let settings = Settings::defaults(&Overrides::default()).unwrap();
    assert_eq!(settings.upstream.url(), "http://127.0.0.1:8265");
    assert_eq!(settings.listeners.len(), 1);
    assert_eq!(settings.listeners[0].address.to_string(), "127.0.0.1:8266");
    assert_eq!(settings.policy.classes.len(), CLASSES.len());
    assert_eq!(settings.class_modes.len(), CLASSES.len());
    assert_eq!(settings.version.as_ref(), "defaults");
}

#[test]
fn the_command_line_goes_over_the_file() {
    let overrides = Overrides {
        upstream: Some("http://ray-head:8265".into()),
        listen: Some("0.0.0.0:9000".into()),
        mode: Some(Mode::Shadow),
        prometheus: Some("http://prometheus:9090".into()),
        state_dir: Some("/var/lib/rayguard".into()),
    };
    let settings = parse("mode = 'enforce'\nupstream = 'http://x:1'\n", "f", &overrides).unwrap();
    assert_eq!(settings.upstream.authority(), "ray-head:8265");
    assert_eq!(settings.listeners[0].address.to_string(), "0.0.0.0:9000");
    assert_eq!(settings.mode, Mode::Shadow);
    assert_eq!(settings.metrics.prometheus.unwrap().url.as_str(), "http://prometheus:9090/");
    assert_eq!(settings.adjustment_log.dir, Path::new("/var/lib/rayguard/adjustment-log"));
}

#[test]
fn a_slip_on_the_command_line_is_told_without_a_place_in_the_file() {
    let overrides = Overrides { upstream: Some("ftp://x".into()), ..Overrides::default() };
    let problems = Settings::defaults(&overrides).unwrap_err();
    assert_eq!(problems.list()[0].span, None);
    assert_eq!(problems.list()[0].key, "upstream");
}

#[test]
fn limits_are_laid_over_the_catalogue_key_by_key() {
    let settings = settings(
        "[class.job-submit]
         rate = { max = '10/s', burst = 5 }
         in_flight = 6
         queue = { wait = '3s' }
         per_client = { rate = '30/min', in_flight = 4 }
         coalesce = 'off'
         timeout = '45s'
         law = { kind = 'aimd', decrease = 0.5 }
         signals = ['head_cpu', 'gcs_latency']
         backlog = 'off'
         [slo]
         job-submit = 'p99 1500ms'",
    );
    let submit = class(&settings, "job-submit");
    let rate = submit.rate.unwrap();
    assert_eq!(rate.per_second, Bounds { initial: 4.0, min: 0.2, max: 10.0 });
    assert_eq!(rate.burst, 5);
    assert_eq!(submit.in_flight, Bounds::fixed(6.0));
    assert_eq!(submit.queue.len_max, 2048);
    assert_eq!(submit.queue.wait_max, Duration::from_secs(3));
    assert_eq!(submit.per_client.rate, Some((0.5, 1)));
    assert_eq!(submit.per_client.in_flight, Some(4));
    assert_eq!(submit.timeout, Some(Duration::from_secs(45)));
    assert_eq!(submit.law, Law::Aimd { increase: 0.5, decrease: 0.5 });
    let followed: Vec<&str> =
        submit.signals.iter().map(|id| &*settings.policy.signals[id.index()].name).collect();
    assert_eq!(followed, ["head_cpu", "gcs_latency"]);
    assert_eq!(submit.backlog, None);
    assert!((submit.slo.quantile - 0.99).abs() < 1e-12);
    assert_eq!(submit.slo.latency, Duration::from_millis(1500));
}

#[test]
fn a_law_for_all_spares_the_classes_that_stand_still() {
    let settings =
        settings("[control]\nlaw = { kind = 'aimd' }\n[class.job-list]\nlaw = { kind = 'static' }");
    assert!(matches!(class(&settings, "job-submit").law, Law::Aimd { .. }));
    assert_eq!(class(&settings, "job-list").law, Law::Static);
    assert_eq!(class(&settings, "log-tail").law, Law::Static);
    assert!(matches!(class(&settings, "serve").law, Law::Gradient { .. }));
}

#[test]
fn classes_routes_and_signals_of_the_operators_own_join_the_built_in_ones() {
    let settings = settings(
        "[metrics]
         prometheus = 'http://prometheus:9090'
         [signal.disk]
         target = 90
         unit = '%'
         sources = [
           { metric = 'ray_node_disk_usage{IsHeadNode=\"true\"}', how = 'ratio', to = 'ray_node_disk_total', scale = 100 },
           { promql = 'max(disk)' },
         ]
         [class.models]
         module = 'Serve'
         rate = { initial = '100/s' }
         signals = ['disk']
         [[route]]
         path = '/v1/{*rest}'
         header = 'X-Tier: gold'
         class = 'models'
         [[route]]
         method = 'GET'
         path = '/api/jobs/'
         class = 'views'",
    );
    let models = class(&settings, "models");
    assert_eq!(&*settings.policy.modules[models.module.index()].name, "Serve");
    assert_eq!(models.rate.unwrap().per_second, Bounds { initial: 100.0, min: 10.0, max: 1000.0 });
    assert_eq!(models.rate.unwrap().burst, 100);
    let disk = &settings.policy.signals[models.signals[0].index()];
    assert_eq!(disk.sources.len(), 2);
    assert_eq!(disk.sources[1], SignalSource::PromQl("max(disk)".into()));
    let [first, second] = &settings.routes[..] else { panic!("two routes") };
    assert_eq!((first.surface, second.surface), (Surface::Serve, Surface::Dashboard));
    let tier = first.header.as_ref().unwrap();
    assert_eq!((&*tier.name, tier.value.as_deref()), ("x-tier", Some("gold")));
    assert_eq!(first.method, None);
    assert_eq!(&*second.class, "views");
}

#[test]
fn listeners_may_be_many_and_of_every_kind() {
    let settings = settings(
        "upstream = 'http://127.0.0.1:18265'
         [[listen]]
         address = '0.0.0.0:8265'
         tls = { certificate = '/c.pem', key = '/k.pem' }
         proxy_protocol = true
         [[listen]]
         address = 'unix:/run/rayguard/proxy.sock'
         [[listen]]
         kind = 'ray-client'
         address = '[::1]:10001'
         upstream = '127.0.0.1:20001'",
    );
    let [tls, unix, client] = &settings.listeners[..] else { panic!("three listeners") };
    assert!(tls.tls.is_some() && tls.proxy_protocol);
    assert_eq!(unix.address, Address::Unix("/run/rayguard/proxy.sock".into()));
    assert_eq!(unix.upstream.authority(), "127.0.0.1:18265");
    assert_eq!((client.surface, client.upstream.port), (Surface::RayClient, 20001));
}

#[test]
fn a_server_in_tls_behind_the_proxy_is_known_by_its_authority_and_name() {
    let listen = "[[listen]]\naddress = '127.0.0.1:1'\nkind = 'serve'\nupstream = 'http://serve.ray:443'\n";
    let given = settings(&format!("{listen}upstream_tls = {{ authorities = '/ca.pem' }}"));
    let tls = given.listeners[0].upstream_tls.as_ref().unwrap();
    assert_eq!((tls.authorities.to_str(), &*tls.name.to_str()), (Some("/ca.pem"), "serve.ray"));
    refused(&format!("{listen}upstream_tls = {{ name = 'a' }}"), "listen[0].upstream_tls", "authorities");
    refused(
        &format!("{listen}upstream_tls = {{ authorities = 'c', name = 'a b' }}"),
        "listen[0].upstream_tls.name",
        "not the name of a server",
    );
}

#[test]
fn one_class_may_be_shadowed_alone() {
    let settings = settings("[class.views]\nmode = 'shadow'");
    for (class, mode) in settings.policy.classes.iter().zip(&settings.class_modes) {
        assert_eq!(*mode == Mode::Shadow, &*class.name == "views");
    }
}

#[test]
fn secrets_stand_in_files_or_variables_never_in_the_file() {
    let settings = settings(
        "[admin]
         token = { file = '/run/secrets/admin' }
         [[alerts.notify]]
         kind = 'slack'
         url_from = { env = 'SLACK_URL' }",
    );
    assert_eq!(settings.admin.unwrap().token, Some(Secret::File("/run/secrets/admin".into())));
    assert_eq!(settings.alerts.notify[0].url, NotifyUrl::Secret(Secret::Env("SLACK_URL".into())));
    refused("[admin]\ntoken = { file = 'a', env = 'B' }", "admin.token", "one place");
    refused("[admin]\ntoken = {}", "admin.token", "one place");
    refused("[admin]\ntoken = 'hunter2'", "admin.token", "is not written in the configuration");
    refused("[admin]\ntoken = ['hunter2']", "admin.token", "is not written in the configuration");
}

#[test]
fn replicas_are_absent_unless_asked_for_and_say_where_their_store_is_and_how_many_share_it() {
    assert!(settings("").replicas.is_none());
    let replicas = settings("[replicas]\nurl = 'redis://cache:6379/2'\ncount = 3").replicas.unwrap();
    assert_eq!((&*replicas.url, replicas.count, &*replicas.group), ("redis://cache:6379/2", 3, "rayguard"));
    assert_eq!(replicas.timing.period.as_millis(), 250);
    refused("[replicas]\ncount = 3", "replicas.url", "`url` is missing");
    refused("[replicas]\nurl = 'redis://cache'", "replicas.count", "even share");
    refused("[replicas]\nurl = 'redis://u:hunter2@cache'\ncount = 3", "replicas.url", "contains a password");
    refused("[replicas]\nurl = 'rediss://cache'\ncount = 3", "replicas.url", "needs `authorities`");
    let open = "[replicas]\nurl = 'redis://cache'\nauthorities = '/ca.pem'\ncount = 3";
    refused(open, "replicas.authorities", "not encrypted");
    let replicas =
        settings("[replicas]\nurl = 'rediss://[::1]:6380'\nauthorities = '/ca.pem'\ncount = 3").replicas;
    let tls = replicas.unwrap().tls.unwrap();
    assert_eq!((&*tls.name.to_str(), tls.authorities.to_str()), ("::1", Some("/ca.pem")));
    refused("[replicas]\nurl = 'http://cache'\ncount = 3", "replicas.url", "not the address of a Redis");
    refused("[replicas]\nurl = 'redis://cache'\ncount = 0", "replicas.count", "0");
    refused("[replicas]\nurl = 'redis://cache'\ncount = 3\ngroup = 'a b'", "replicas.group", "not a name");
}

#[test]
fn the_admin_listener_is_asked_by_names_without_scheme_and_port() {
    let one = problems("[class.job-list]\nrate = { initial = 2 }");
    assert_eq!(one.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>(), ["class.job-list.rate.initial"]);
    assert_eq!(settings("contact = ' #ray-help '").contact.unwrap().as_str(), "#ray-help");
    for wrong in ["", "two\\nlines", &"x".repeat(201)] {
        refused(&format!("contact = \"{wrong}\""), "contact", "is not one line");
    }
    refused("[admin]\nurl = 'page'", "admin.url", "is not a URL");
    let hosts = settings("[admin]\nhosts = ['Rayguard.ray.svc']").admin.unwrap().hosts;
    assert_eq!(hosts, [std::sync::Arc::<str>::from("rayguard.ray.svc")]);
    for wrong in ["http://rayguard", "rayguard:9465", "", "a b"] {
        refused(&format!("[admin]\nhosts = ['{wrong}']"), "admin.hosts[0]", "not a host name");
    }
}

#[test]
fn the_rate_limit_service_is_off_until_it_is_told_where_to_listen() {
    assert_eq!(settings("").ratelimit_service, None);
    let service = settings("[ratelimit_service]\nlisten = '127.0.0.1:8281'").ratelimit_service.unwrap();
    assert_eq!((&*service.domain, service.surface, service.tls), ("rayguard", Surface::Dashboard, None));
    assert_eq!(
        (service.listen.to_string(), service.permit_max),
        ("127.0.0.1:8281".into(), Duration::from_mins(10))
    );
    let serve = settings("[ratelimit_service]\nlisten = 'unix:/run/r.sock'\nkind = 'serve'\ndomain = 'apps'");
    assert_eq!(serve.ratelimit_service.unwrap().surface, Surface::Serve);

    let listening = "[ratelimit_service]\nlisten = '127.0.0.1:8281'\n";
    refused("[ratelimit_service]\ndomain = 'x'", "ratelimit_service", "no `listen`");
    refused(&format!("{listening}domain = ''"), "ratelimit_service.domain", "empty");
    refused(&format!("{listening}permit_max = '2d'"), "ratelimit_service.permit_max", "outside");
    refused(&listening.replace("8281", "8266"), "ratelimit_service.listen", "taken by `listen`");
    refused(&listening.replace("8281", "8265"), "ratelimit_service.listen", "Ray's own address");
    refused(&format!("{listening}[admin]\nlisten = '127.0.0.1:8281'"), "admin.listen", "taken by");
}

#[test]
fn a_class_made_held_neither_waits_nor_times_out() {
    let settings = settings("[class.views]\nkind = 'held'");
    let views = class(&settings, "views");
    assert_eq!((views.kind, views.queue.len_max, views.timeout), (Kind::Held, 0, None));
    refused("[class.log-tail]\nqueue = { len = 5, wait = '1s' }", "class.log-tail.queue", "held requests");
    refused("[class.log-tail]\ntimeout = '5s'", "class.log-tail.timeout", "held requests");
}

#[test]
fn limits_on_what_is_not_limited_are_refused_as_useless() {
    refused("[class.health]\nrate = '5/s'", "class.health.rate", "exempt");
    refused("[class.views]\ntreatment = 'blocked'\nin_flight = 5", "class.views.in_flight", "blocked");
    let settings = settings("[class.blocked]\ntreatment = 'limited'");
    let limited = class(&settings, "blocked");
    assert_eq!(limited.treatment, Treatment::Limited);
    assert!(limited.in_flight.max <= 100.0, "what was unlimited gets limits: {:?}", limited.in_flight);
}

#[test]
fn bounds_out_of_order_are_told_with_what_is_a_default() {
    refused(
        "[class.job-submit]\nrate = { min = '100/s' }",
        "class.job-submit.rate",
        "min 100/s, initial 4/s (the default), max 64/s (the default)",
    );
    refused(
        "[class.views]\nin_flight = { initial = 4, min = 5, max = 6 }",
        "class.views.in_flight",
        "rising order",
    );
    refused("[module.JobHead]\nin_flight = { max = 1 }", "module.JobHead.in_flight", "rising order");
}

#[test]
fn numbers_out_of_their_range_are_refused_nan_included() {
    for (text, key) in [
        ("[class.views]\nin_flight = 0", "class.views.in_flight"),
        ("[class.views]\nin_flight = nan", "class.views.in_flight"),
        ("[class.views]\nin_flight = { max = inf }", "class.views.in_flight.max"),
        ("[class.views]\npriority = 10", "class.views.priority"),
        ("[class.views]\nrate = '0/s'", "class.views.rate"),
        ("[class.job-submit]\nrate = { burst = 0 }", "class.job-submit.rate.burst"),
        ("[class.views]\nbytes_per_second = '1 B/s'", "class.views.bytes_per_second"),
        ("[class.views]\ntimeout = '0s'", "class.views.timeout"),
        ("[class.views]\nper_client = { in_flight = 0 }", "class.views.per_client.in_flight"),
        ("[signal.head_cpu]\ntarget = nan", "signal.head_cpu.target"),
        ("[signal.head_cpu]\ntarget = 0", "signal.head_cpu.target"),
        ("[control]\ninner_period = '0s'", "control.inner_period"),
        ("[control]\nouter_period = '0s'", "control.outer_period"),
        ("[control]\nslew = 1.0", "control.slew"),
        ("[control]\ndeadband = nan", "control.deadband"),
        ("[control]\nlaw = { kind = 'aimd', decrease = 1.0 }", "control.law.decrease"),
        ("[control]\nlaw = { kind = 'gradient', tolerance = 1.0 }", "control.law.tolerance"),
        ("[metrics]\ninterval = '0s'", "metrics.interval"),
        ("[probe]\ninterval = '0s'", "probe.interval"),
        ("[adjustment_log]\nfiles_max = 0", "adjustment_log.files_max"),
        ("[http]\nconnections_max = 0", "http.connections_max"),
        ("[module.JobHead]\nwork = '0s'", "module.JobHead.work"),
    ] {
        refused(text, key, "is outside");
    }
}

#[test]
fn a_version_of_ray_is_one_of_those_that_are_known_or_asked_for() {
    for (text, profile) in
        [("auto", None), ("2.44", Some("2.44")), ("2.44.1", Some("2.44")), ("2.70", Some("2.60"))]
    {
        let settings = parse(&format!("ray_version = '{text}'"), "f", &Overrides::default()).unwrap();
        assert_eq!(settings.ray.map(|profile| profile.ray), profile, "{text}");
    }
    refused("ray_version = 'nightly'", "ray_version", "is not a Ray version from 2.9 on");
}

#[test]
fn a_burst_that_takes_hours_to_come_back_is_refused_with_its_arithmetic() {
    refused(
        "[class.job-submit]\nrate = { initial = '0.5/s', burst = 5000 }",
        "class.job-submit.rate",
        "burst of 5000 needs 2h 46m 40s to refill at 30/min",
    );
}

#[test]
fn names_that_do_not_exist_are_refused_with_the_nearest() {
    let remedy = |text: &str| {
        let problems = parse(text, "f", &Overrides::default()).unwrap_err();
        problems.list()[0].remedy.clone().unwrap()
    };
    assert_eq!(remedy("[class.job_submit]\npriority = 1"), "did you mean `job-submit`?");
    assert_eq!(remedy("[slo]\njob-sumbit = 'p99 1s'"), "did you mean `job-submit`?");
    assert_eq!(remedy("[signal.headcpu]\ntarget = 5"), "did you mean `head_cpu`?");
    assert_eq!(remedy("[module.Jobhead]\nin_flight = 5"), "did you mean `JobHead`?");
    assert_eq!(remedy("[class.views]\nsignals = ['gcs-latency']"), "did you mean `gcs_latency`?");
    assert_eq!(
        remedy("[class.views]\nbacklog = 'submission_backlogs'"),
        "did you mean `submission_backlog`?"
    );
    assert_eq!(remedy("[[route]]\npath = '/'\nclass = 'view'"), "did you mean `views`?");
    assert_eq!(remedy("mode = 'shaddow'"), "write one of: enforce, shadow");
}

#[test]
fn a_listener_that_leads_to_itself_is_refused() {
    refused("upstream = 'http://127.0.0.1:8265'\nlisten = '127.0.0.1:8265'", "listen", "loop");
    refused("upstream = 'http://localhost:8265'\nlisten = '0.0.0.0:8265'", "listen", "loop");
    refused("upstream = 'http://127.0.0.1:8266'", "upstream", "loop");
    // Another host's port of the same number is what a Deployment in front of Ray has.
    settings("upstream = 'http://ray-head:8265'\nlisten = '0.0.0.0:8265'");
    refused("[admin]\nlisten = '127.0.0.1:8265'", "admin.listen", "Ray's own");
}

#[test]
fn ports_that_clash_are_refused() {
    refused("[admin]\nlisten = '0.0.0.0:8266'", "admin.listen", "taken by `listen`");
    let two = "[[listen]]\naddress = '127.0.0.1:1'\n[[listen]]\naddress = '0.0.0.0:1'";
    refused(two, "listen[1].address", "taken by `listen[0].address`");
    settings("listen = '127.0.0.1:0'\n[admin]\nlisten = '127.0.0.1:0'");
}

#[test]
fn addresses_that_cannot_be_bound_are_refused() {
    refused(&format!("listen = 'unix:/{}'", "x".repeat(120)), "listen", "121 bytes");
    refused("listen = 'unix:'", "listen", "empty");
    refused("listen = ':8266'", "listen", "not an address");
    refused("listen = '127.0.0.1'", "listen", "not an address");
    refused("listen = []", "listen", "no listener");
    refused("[[listen]]\nkind = 'serve'\naddress = '127.0.0.1:8000'", "listen[0]", "`upstream` of its own");
    refused("[[listen]]\nkind = 'dashboard'", "listen[0]", "no `address`");
    refused("[[listen]]\naddress = '127.0.0.1:1'\ntls = { key = 'k' }", "listen[0].tls", "both");
}

#[test]
fn upstreams_that_are_no_servers_are_refused() {
    for (text, part) in [
        ("https://ray:8265", "do not use https"),
        ("ftp://ray", "scheme"),
        ("http://ray:8265/prefix", "path"),
        ("http://user:secret@ray:8265", "password"),
        ("http://ray:0", "port 0"),
        ("http://ray:99999", "not an address"),
        ("", "not an address"),
    ] {
        refused(&format!("upstream = '{text}'"), "upstream", part);
    }
}

#[test]
fn routes_that_are_no_routes_are_refused() {
    refused("[[route]]\nclass = 'views'", "route[0]", "needs `path`");
    refused("[[route]]\npath = '/x/{*a}/b'\nclass = 'views'", "route[0]", "segment `{*a}`");
    refused("[[route]]\npath = '/x//y'\nclass = 'views'", "route[0]", "can never match");
    refused("[[route]]\nmethod = 'G T'\npath = '/x'\nclass = 'views'", "route[0]", "has method");
    refused("[[route]]\nheader = 'a b: c'\npath = '/x'\nclass = 'views'", "route[0].header", "not a header");
    let twice = "[[route]]\npath = '/x/{a}'\nclass = 'views'\n[[route]]\npath = '/x/{b}'\nclass = 'other'";
    refused(twice, "route[1]", "the same requests as route 0");
}

#[test]
fn laws_take_their_own_constants_alone() {
    refused("[control]\nlaw = {}", "control.law", "no `kind`");
    refused(
        "[control]\nlaw = { kind = 'pid', increase = 0.1 }",
        "control.law.increase",
        "belongs to the law `aimd`",
    );
    refused("[control]\nlaw = { kind = 'pid', ki = 0 }", "control.law.ki", "never finds");
}

#[test]
fn a_gain_that_would_swing_is_refused_with_the_gain_that_would_not() {
    let text = "[class.job-submit]\nin_flight = 6\nlaw = { kind = 'pid', ki = 1.5 }";
    refused(text, "class.job-submit.law", "rate of job-submit: a gain of 1.500");
    let problems = parse(text, "f", &Overrides::default()).unwrap_err();
    let remedy = problems.list()[0].remedy.as_deref().unwrap();
    assert!(remedy.contains("use a gain of at most"), "{remedy}");
}

#[test]
fn sources_say_one_thing() {
    let source = |source: &str| format!("[signal.head_cpu]\nsources = [{source}]");
    refused(&source("{}"), "signal.head_cpu.sources[0]", "one of");
    refused(&source("{ metric = 'a', probe = true }"), "signal.head_cpu.sources[0]", "one of");
    refused(&source("{ promql = 'a' }"), "signal.head_cpu.sources[0].promql", "needs a Prometheus");
    refused(&source("{ metric = 'a', how = 'quantile' }"), "signal.head_cpu.sources[0].at", "needs `at`");
    refused(&source("{ metric = 'a', to = 'b' }"), "signal.head_cpu.sources[0].to", "go together");
    refused(
        &source("{ metric = 'a{b=~\"c.d\"}' }"),
        "signal.head_cpu.sources[0].metric",
        "more than a prefix",
    );
    refused(&source("{ probe = true, scale = 2.0 }"), "signal.head_cpu.sources[0].scale", "belongs to");
    refused("[signal.head_cpu]\nsources = []", "signal.head_cpu.sources", "no source");
    refused("[signal.head_cpu]\nstale_after = '6s'", "signal.head_cpu.stale_after", "two scrapes");
}

#[test]
fn held_connections_and_ceiling_must_leave_ray_some_of_its_hundred() {
    refused("[class.log-tail]\nin_flight = 95", "class.log-tail.in_flight", "Ray hangs at 100");
    refused("[module.StateHead]\nin_flight = { max = 60 }", "module.StateHead.in_flight", "Ray hangs at 100");
}

#[test]
fn trust_is_not_given_to_everyone() {
    refused("trusted_proxies = ['0.0.0.0/0']", "trusted_proxies[0]", "trusts everyone");
    refused("trusted_proxies = ['proxy.local']", "trusted_proxies[0]", "not a network");
    refused("[identity]\nheaders = ['x-user']", "identity.headers", "there are none");
    assert_eq!(settings("trusted_proxies = ['10.1.2.3', 'fd00::/8']").trusted_proxies.len(), 2);
}

#[test]
fn the_names_of_agents_and_of_their_header_are_the_operators_to_choose() {
    let shipped = settings("").identity;
    assert_eq!((&*shipped.agent_header, &*shipped.agents[0]), ("user-agent", "kuberay-operator/"));
    let chosen = settings("[identity]\nagents = ['My-Bot/']\nagent_header = 'X-Client'").identity;
    assert_eq!((&*chosen.agent_header, &*chosen.agents), ("x-client", &["my-bot/".into()][..]));
    assert!(settings("[identity]\nagents = []").identity.agents.is_empty());
    refused("[identity]\nagents = ['']", "identity.agents[0]", "beginning");
    refused("[identity]\nagents = ['two words']", "identity.agents[0]", "beginning");
    refused("[identity]\nagent_header = 'a b'", "identity.agent_header", "not the name of a header");
}

#[test]
fn an_identity_that_kubernetes_has_reviewed_comes_in_the_headers_of_a_trusted_proxy() {
    // As config/deploy/README.md shows it.
    let page = include_str!("../../config/deploy/README.md");
    let example = page.split("```toml\n").map(|rest| rest.split("```").next().unwrap_or_default());
    let example = example.into_iter().find(|text| text.contains("x-remote-user")).expect("the example");
    let settings = settings(example);
    assert_eq!(&*settings.identity.headers[0], "x-remote-user");
    assert_eq!(settings.trusted_proxies.len(), 1);
}

#[test]
fn api_keys_are_digests_and_differ() {
    let digest = "a".repeat(64);
    let known = settings(&format!("[api_keys.ci]\nsha256 = '{digest}'"));
    assert_eq!(known.identity.api_keys[0].sha256, [0xaa; 32]);
    refused("[api_keys.ci]\nsha256 = 'secret'", "api_keys.ci.sha256", "64 hexadecimal");
    refused("[api_keys.ci]", "api_keys.ci.sha256", "missing");
    let twice = format!("[api_keys.a]\nsha256 = '{digest}'\n[api_keys.b]\nsha256 = '{digest}'");
    refused(&twice, "api_keys.b.sha256", "`a` has the same key");
}

#[test]
fn alerts_can_be_made_patient_and_silenced_one_by_one() {
    use rayguard_core::alert::Alert;
    let alerts = settings(
        "[alerts.rule.slo-breached]
         for = '5m'
         [alerts.rule.pinned-ceiling]
         enabled = false",
    )
    .alerts;
    assert_eq!(alerts.rules[&Alert::SloBreached].fire_after, Duration::from_mins(5));
    assert_eq!(alerts.rules[&Alert::SloBreached].clear_after, Alert::SloBreached.patience().clear_after);
    assert!(!alerts.rules.contains_key(&Alert::PinnedCeiling));
    refused("[alerts.rule.slo]", "alerts.rule.slo", "no alert");
    let loud = settings("[class.views]\nalert_above = '600/min'");
    assert_eq!(class(&loud, "views").alert_above, Some(10.0));
    assert_eq!(class(&loud, "job-list").alert_above, None);
}

#[test]
fn an_objective_beyond_the_timeout_is_refused() {
    refused("[slo]\njob-list = 'p99 5m'", "slo.job-list", "beyond the class's timeout");
    refused("[slo]\njob-list = 'p100 1s'", "slo.job-list", "outside p50");
}

#[test]
fn grammar_types_and_meaning_are_told_in_one_round() {
    let found = problems("mode = 5\nmood = 1\n[class.views]\npriority = 99\n[class.nope]\n");
    let keys: Vec<&str> = found.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(keys, ["mode", "mood", "class.views.priority", "class.nope"]);
}

proptest! {
    #[test]
    fn no_text_panics(text in "\\PC{0,300}") {
        let _ = problems(&text);
    }

    #[test]
    fn no_file_made_of_known_keys_and_wild_values_panics(entries in proptest::collection::vec((0..ways().len(), 0_usize..VALUES.len()), 0..20)) {
        let lines: Vec<String> = entries.iter().map(|(key, value)| format!("{} = {}", ways()[*key], VALUES[*value])).collect();
        let _ = problems(&lines.join("\n"));
    }
}

/// Every key with its tables, under names that are built in and one that is not.
fn ways() -> &'static [String] {
    use table::Section;
    static WAYS: std::sync::OnceLock<Vec<String>> = std::sync::OnceLock::new();
    WAYS.get_or_init(|| {
        let tops = keys::Raw::NAMES;
        let keys = keys::SECTIONS.iter().flat_map(|(_, keys)| keys()).map(|key| key.path);
        // Tables within tables are among the values.
        let keys = keys.filter(|key| tops.contains(&key.split('.').next().unwrap_or_default()));
        let names = |key: String| {
            ["job-submit", "job-list", "head_cpu", "JobHead", "new"].map(|name| key.replace("<name>", name))
        };
        let mut ways: Vec<String> = keys.flat_map(names).collect();
        ways.extend(["slo.job-list", "slo.x", "class.job-submit.rate.burst"].map(str::to_owned));
        ways.extend(["enabled", "for", "clear"].map(|key| format!("alerts.rule.slo-breached.{key}")));
        ways.sort();
        ways.dedup();
        assert!(ways.len() > 200, "{}", ways.len());
        ways
    })
}

const VALUES: &[&str] = &[
    "1",
    "-1",
    "0",
    "nan",
    "inf",
    "-inf",
    "1e308",
    "9223372036854775807",
    "true",
    "''",
    "'off'",
    "'1s'",
    "'99999999999999999999h'",
    "'1/h'",
    "'1e300/s'",
    "'0/s'",
    "'100 MiB'",
    "'p99 1s'",
    "'p0 0s'",
    "'JobHead'",
    "'http://x'",
    "'http://[::1]:5'",
    "'127.0.0.1:8265'",
    "'unix:'",
    "'🦀'",
    "[]",
    "[1]",
    "['']",
    "['head_cpu']",
    "{}",
    "{ kind = 'pid', ki = nan }",
    "{ kind = 'slack' }",
    "{ initial = 1 }",
    "{ initial = '1/h', burst = 1000000 }",
    "{ min = nan, max = nan, initial = nan }",
    "{ len = 5 }",
    "{ file = '' }",
    "[{ metric = 'a{b=~\"|\"}' }]",
    "[{ path = '/{a}{b}', class = 'views' }]",
    "[{ probe = true }, { promql = '' }]",
    "[{ address = '1:2' }]",
    "1979-05-27T07:32:00Z",
];

// === the files and the page that go with the code ===

#[test]
fn the_complete_file_names_every_key_that_is_accepted() {
    let file = include_str!("../../config/rayguard.toml");
    let words: std::collections::BTreeSet<&str> =
        file.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
    let keys: Vec<_> = keys::SECTIONS.iter().flat_map(|(_, keys)| keys()).collect();
    assert!(keys.len() > 150, "{}", keys.len());
    for key in keys {
        let name = key.path.rsplit('.').next().unwrap();
        assert!(words.contains(name), "`{}` is not named", key.path);
    }
}

#[test]
fn what_the_complete_file_shows_in_comments_is_sound_too() {
    let file = include_str!("../../config/rayguard.toml");
    // Lines that are a key or a table behind `# `, without the prose around them.
    let is_key = |line: &str| {
        line.starts_with('[')
            || line.split_once(" = ").is_some_and(|(key, _)| {
                !key.is_empty()
                    && key.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
            })
    };
    let shown: Vec<&str> = file
        .lines()
        .map(|line| line.strip_prefix("# ").filter(|rest| is_key(rest)).unwrap_or(line))
        // One listener or many, one address or a secret one: the comments show both.
        .filter(|line| !line.starts_with("listen = \"127.0.0.1:8266\"") && !line.starts_with("url_from"))
        .collect();
    let text = shown.join("\n").replace("trusted_proxies = []", "trusted_proxies = [\"10.0.0.0/8\"]");
    let settings = settings(&text);
    assert_eq!(settings.alerts.notify.len(), 1);
    assert_eq!(settings.routes.len(), 1);
    assert_eq!(settings.identity.api_keys.len(), 1);
    assert!(settings.listeners[0].tls.is_some());
}

#[test]
fn the_minimal_file_is_sound_and_short() {
    let text = include_str!("../../config/minimal.toml");
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).count();
    assert!(lines <= 10, "{lines} lines");
    let settings = settings(text);
    assert!(settings.metrics.prometheus.is_some());
}

#[test]
fn every_setting_is_heeded_somewhere() {
    fn read(dir: &Path, text: &mut String) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && path.file_name().is_some_and(|name| name != "config") {
                read(&path, text);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                text.push_str(&std::fs::read_to_string(&path).unwrap());
            }
        }
    }
    let mut code = String::new();
    read(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/..")), &mut code);
    let fields = include_str!("settings.rs").lines().filter_map(|line| {
        let (field, _) = line.strip_prefix("    pub ")?.split_once(": ")?;
        (!field.starts_with("fn ")).then_some(field)
    });
    use table::Section;
    let as_read = [keys::Http::NAMES, keys::Probe::NAMES, keys::AdjustmentLog::NAMES, keys::Log::NAMES];
    let fields = fields.chain(as_read.concat());
    let heeded = |field: &str| {
        code.match_indices(&format!(".{field}")).any(|(at, word)| {
            !code[at + word.len()..].starts_with(|c: char| c.is_alphanumeric() || c == '_' || c == '(')
        })
    };
    // An upstream's host is read through its methods, and a probe that is not enabled is none.
    let elsewhere = ["host", "enabled"];
    let unheeded: Vec<&str> = fields.filter(|field| !heeded(field) && !elsewhere.contains(field)).collect();
    assert!(unheeded.is_empty(), "a key without effect is a promise that is not kept: {unheeded:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_was_asked_its_pattern_is_short_and_a_route_as_it_stands(path in "/[ -~]{0,80}") {
        let pattern = rayguard_core::usage::path_template::template(&path);
        prop_assert!(pattern.len() <= 7 * 40 + 8);
        let text = format!("[[route]]\npath = '{pattern}'\nclass = 'other'\n");
        let read = parse(&text, "test", &Overrides::default());
        prop_assert!(read.is_ok(), "{pattern}: {}", read.err().map(|wrong| wrong.to_string()).unwrap_or_default());
    }
}

#[test]
fn a_prometheus_is_asked_as_its_people_want() {
    let text = "[metrics]\nprometheus = 'https://prom.example/prefix?tenant=a'\n\
                prometheus_authorities = '/ca.pem'\nprometheus_user = 'me'\n\
                prometheus_password = { file = '/secret' }\nprometheus_headers = { X-Scope-OrgID = 'team-a' }\n\
                prometheus_headers_from = { env = 'RAY_PROMETHEUS_HEADERS' }\n";
    let prometheus = settings(text).metrics.prometheus.unwrap();
    assert_eq!(prometheus.url.as_str(), "https://prom.example/prefix?tenant=a");
    let password = Secret::File("/secret".into());
    assert_eq!(prometheus.login, Some(Login::Basic { user: "me".into(), password }));
    assert_eq!(prometheus.headers, [("X-Scope-OrgID".into(), "team-a".into())]);
    assert_eq!(prometheus.headers_from, Some(Secret::Env("RAY_PROMETHEUS_HEADERS".into())));
}

#[test]
fn what_a_prometheus_is_asked_with_is_refused_where_it_says_nothing() {
    let http = "[metrics]\nprometheus = 'http://p:9090'\n";
    refused("[metrics]\nprometheus_user = 'me'\n", "metrics.prometheus_user", "no Prometheus server");
    refused(
        &format!("{http}prometheus_authorities = '/ca'\n"),
        "metrics.prometheus_authorities",
        "not encrypted",
    );
    refused(&format!("{http}prometheus_user = 'me'\n"), "metrics.prometheus_user", "token");
    let both = format!("{http}prometheus_token = {{ env = 'T' }}\nprometheus_user = 'me'\n");
    refused(&both, "metrics.prometheus_token", "user with a password");
    let header = format!("{http}prometheus_headers = {{ 'not a name' = 'x' }}\n");
    refused(&header, "metrics.prometheus_headers.not a name", "header");
    refused("[metrics]\nprometheus = 'ftp://p'\n", "metrics.prometheus", "http");
    let login = "[metrics]\nprometheus = 'http://me:s3cret@p:9090'\n";
    refused(login, "metrics.prometheus", "contains a user or a password");
    let shown = parse(login, "f", &Overrides::default()).unwrap_err().to_string();
    assert!(shown.contains("prometheus_password"), "{shown}");
}
