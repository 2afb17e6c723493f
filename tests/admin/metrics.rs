//! Our own metrics: sound for promtool, scraped by a real Prometheus.

use crate::instance::{Instance, eventually, has};
use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};

const METRICS: &str = include_str!("../../config/deploy/METRICS.md");
const PROMTOOL: &str = "/usr/bin/promtool";
const PROMETHEUS: &str = "/usr/bin/prometheus";

fn value(page: &str, series: &str) -> Option<f64> {
    page.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok())
}

#[tokio::test]
async fn the_page_counts_what_came_through() {
    let instance = Instance::start("count", "", None).await;
    assert_eq!(instance.ask("/api/jobs/").await, 200);
    assert_eq!(instance.ask("/test/dump").await, 404);
    let page = eventually("both are counted", async || {
        let page = instance.get("/metrics").await.1;
        let blocked =
            value(&page, "rayguard_requests_total{class=\"blocked\",verdict=\"shed\",reason=\"blocked\"}")?;
        let served = value(&page, "rayguard_answers_total{class=\"job-list\",outcome=\"served\"}")?;
        (blocked > 0.0 && served > 0.0).then_some(page)
    })
    .await;
    let series = |name: &str| value(&page, name).unwrap_or_else(|| panic!("no {name} in\n{page}"));
    assert!(
        (series("rayguard_requests_total{class=\"job-list\",verdict=\"admitted\",reason=\"\"}") - 1.0).abs()
            < 1e-9
    );
    assert!((series("rayguard_request_duration_seconds_count{class=\"job-list\"}") - 1.0).abs() < 1e-9);
    assert!(
        (series("rayguard_request_duration_seconds_bucket{le=\"+Inf\",class=\"job-list\"}") - 1.0).abs()
            < 1e-9
    );
    assert!(series("rayguard_limit{class=\"job-list\",limit=\"in_flight\"}") >= 1.0);
    assert!(series("rayguard_upstream_up") > 0.0);
    assert!(page.contains("# TYPE rayguard_requests_total counter"));
    assert!(!page.contains("# EOF"));
}

#[tokio::test]
async fn the_page_shows_the_families_that_are_documented_and_no_others() {
    let rows = METRICS.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let documented: BTreeSet<String> = rows.map(str::to_owned).collect();
    let instance = Instance::start("families", "", None).await;
    assert_eq!(instance.ask("/api/jobs/").await, 200);
    let shown = eventually("latency has been told and signals have been read", async || {
        let page = instance.get("/metrics").await.1;
        let types = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
        let shown: BTreeSet<String> = types.map(str::to_owned).collect();
        (shown.len() >= documented.len()).then_some(shown)
    })
    .await;
    assert_eq!(shown, documented);
}

#[tokio::test]
async fn series_are_bounded_and_name_no_client() {
    let instance = Instance::start("bounded", "", None).await;
    instance.ask("/api/jobs/").await;
    let before = instance.get("/metrics").await.1.lines().count();
    for client in 0..50 {
        let request = instance
            .client
            .get(format!("http://{}/api/jobs/", instance.proxy))
            .bearer_auth(format!("t{client}"));
        request.send().await.unwrap();
    }
    let page = instance.get("/metrics").await.1;
    assert!(page.lines().count() < 2500);
    // Readings arrive meanwhile; clients add nothing.
    assert!(page.lines().count() <= before + 60, "{before} -> {}", page.lines().count());
}

#[tokio::test]
async fn promtool_finds_nothing_to_say() {
    if !has(PROMTOOL) {
        return;
    }
    let instance = Instance::start("promtool", "", None).await;
    instance.ask("/api/jobs/").await;
    let (_, page) = instance.get("/metrics").await;
    let mut tool = Command::new(PROMTOOL)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    tool.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
    let said = tool.wait_with_output().unwrap();
    assert!(said.status.success() && said.stderr.is_empty(), "{}", String::from_utf8_lossy(&said.stderr));
}

#[test]
fn promtool_accepts_the_rules_and_their_unit_tests() {
    if !has(PROMTOOL) {
        return;
    }
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/config/deploy/prometheus");
    for arguments in [["check", "rules", "rayguard.rules.yml"], ["test", "rules", "rayguard.rules.test.yml"]]
    {
        let said = Command::new(PROMTOOL).args(arguments).current_dir(dir).output().unwrap();
        let text =
            format!("{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
        assert!(said.status.success() && text.contains("SUCCESS"), "{arguments:?}: {text}");
    }
}

#[tokio::test]
async fn openmetrics_is_spoken_to_a_scraper_that_asks_for_it() {
    let instance = Instance::start("openmetrics", "", None).await;
    let request = instance.client.get(format!("{}/metrics", instance.admin));
    let answer = request
        .header("accept", "application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
        .send()
        .await
        .unwrap();
    assert!(answer.headers()["content-type"].to_str().unwrap().starts_with("application/openmetrics-text"));
    let page = answer.text().await.unwrap();
    assert!(page.ends_with("# EOF\n"));
    assert!(page.contains("# TYPE rayguard_requests counter"));
}

/// Ended when dropped.
pub(crate) struct Server(pub(crate) std::process::Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn a_real_prometheus_scrapes_every_series() {
    if !has(PROMETHEUS) {
        return;
    }
    let instance = Instance::start("prometheus", "", None).await;
    instance.ask("/api/jobs/").await;
    let dir = std::env::temp_dir().join(format!("rayguard-prometheus-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let target = instance.admin.trim_start_matches("http://");
    let config = format!(
        "global: {{scrape_interval: 1s, scrape_timeout: 1s}}\nscrape_configs:\n- job_name: rayguard\n  static_configs:\n  - targets: ['{target}']\n"
    );
    std::fs::write(dir.join("prometheus.yml"), config).unwrap();
    let port = free_port();
    let _server = Server(
        Command::new(PROMETHEUS)
            .arg(format!("--config.file={}", dir.join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", dir.join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let query = async |text: &str| {
        let url = reqwest::Url::parse_with_params(
            &format!("http://127.0.0.1:{port}/api/v1/query"),
            [("query", text)],
        );
        let answer = instance.client.get(url.unwrap()).send().await.ok()?;
        let answer: serde_json::Value = serde_json::from_str(&answer.text().await.ok()?).ok()?;
        answer["data"]["result"][0]["value"][1].as_str()?.parse::<f64>().ok()
    };
    eventually("Prometheus has a first scrape", async || {
        (query("up{job=\"rayguard\"}").await? > 0.0).then_some(())
    })
    .await;
    let scraped = query("scrape_samples_scraped{job=\"rayguard\"}").await.unwrap();
    let shown = instance.get("/metrics").await.1.lines().filter(|line| !line.starts_with('#')).count();
    assert!((scraped - shown as f64).abs() < 60.0, "{scraped} of {shown}");
    assert!(query("sum(rayguard_requests_total{verdict=\"admitted\"})").await.unwrap() >= 1.0);
    assert!(query("histogram_quantile(0.5, sum by (le) (rayguard_request_duration_seconds_bucket{class=\"job-list\"}))").await.unwrap() > 0.0);
    let _ = std::fs::remove_dir_all(dir);
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
