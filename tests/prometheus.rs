//! Queries against a real Prometheus server that scrapes a recorded page.
//!
//! Skipped, with a note, where there is no `prometheus` binary; with `CI=true` that is a
//! failure instead, so that the check cannot go missing unnoticed.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "helpers of tests may fail the test and say why"
)]

use rayguard::config::settings::Prometheus as Access;
use rayguard::observe::promql::{Answer, DEFAULT_BOUNDS, QueryError, Server, query};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const PAGE: &str = include_str!("fixtures/ray/scrapes/jobburst_8080.prom");

/// A Prometheus of its own for this test: ended and swept away with the value.
struct Prometheus {
    process: Child,
    home: PathBuf,
    server: Server,
}

impl Prometheus {
    fn start(target: &str) -> Option<Prometheus> {
        // A port that was free a moment ago.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        let home = std::env::temp_dir().join(format!("rayguard-prometheus-{}", std::process::id()));
        std::fs::create_dir_all(&home).unwrap();
        let config = home.join("prometheus.yml");
        let scrape = format!(
            "scrape_configs:\n- job_name: ray\n  scrape_interval: 1s\n  scrape_timeout: 1s\n  \
             static_configs:\n  - targets: ['{target}']\n"
        );
        std::fs::write(&config, scrape).unwrap();
        let started = Command::new("prometheus")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", home.join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let process = match started {
            Ok(process) => process,
            Err(error) => {
                let _ = std::fs::remove_dir_all(&home);
                assert!(!is_ci(), "no Prometheus to test against: {error}");
                eprintln!("skipped: no `prometheus` binary here ({error})");
                return None;
            }
        };
        let server = Server::new(&Access::plain(format!("http://{address}").parse().unwrap())).unwrap();
        Some(Prometheus { process, home, server })
    }

    async fn ask(&self, expression: &str) -> Result<Answer, QueryError> {
        query(&self.server, expression, DEFAULT_BOUNDS).await
    }

    /// Asks until the first scrape is in.
    async fn is_fed(&self) {
        let mut every = tokio::time::interval(Duration::from_millis(100));
        let fed = async {
            while self.ask("max(up) == 1").await.is_err() {
                every.tick().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), fed).await.expect("prometheus scrapes within a minute");
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.home);
    }
}

#[expect(clippy::disallowed_methods, reason = "a test has no command line to be told by")]
fn is_ci() -> bool {
    std::env::var("CI").is_ok_and(|value| value == "true")
}

/// Serves the recorded page for as long as it is polled.
async fn serve(listener: TcpListener) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = vec![0; 4096];
        let _ = stream.read(&mut request).await;
        let length = PAGE.len();
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/plain; version=0.0.4\r\n\
             content-length: {length}\r\nconnection: close\r\n\r\n"
        );
        let _ = stream.write_all(head.as_bytes()).await;
        let _ = stream.write_all(PAGE.as_bytes()).await;
    }
}

#[tokio::test]
async fn a_real_prometheus_gives_the_values_of_the_page_it_scraped() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let Some(prometheus) = Prometheus::start(&listener.local_addr().unwrap().to_string()) else { return };
    let asking = async {
        prometheus.is_fed().await;
        let value = async |expression: &str| prometheus.ask(expression).await.unwrap().value;
        assert_eq!(value("sum(ray_tasks{State=~\"PENDING.*\"})").await.to_bits(), 199f64.to_bits());
        assert_eq!(value("ray_node_cpu_utilization{IsHeadNode=\"true\"}").await.to_bits(), 100f64.to_bits());
        assert_eq!(value("scalar(vector(2)) * 3").await.to_bits(), 6f64.to_bits());

        let evaluated = prometheus.ask("max(up)").await.unwrap().evaluated;
        assert!(prometheus.ask("max(up)").await.unwrap().evaluated >= evaluated, "its clock moves on");

        assert_eq!(prometheus.ask("no_such_series").await, Err(QueryError::Empty));
        assert!(matches!(prometheus.ask("scalar(vector(0)) / 0").await, Err(QueryError::NotFinite(..))));
        assert!(matches!(prometheus.ask("ray_gcs_actors_count").await, Err(QueryError::SeveralSeries(5))));
        assert!(matches!(prometheus.ask("\"words\"").await, Err(QueryError::WrongType(..))));
        let refused = prometheus.ask("sum(").await.unwrap_err();
        assert!(matches!(&refused, QueryError::Refused { kind, .. } if kind == "bad_data"), "{refused}");
    };
    tokio::select! {
        () = asking => (),
        () = serve(listener) => unreachable!("it serves for ever"),
    }
}
