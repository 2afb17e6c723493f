//! The state directory of the real process: a `kill -9` leaves whole lines and limits to start
//! from, a second process is rejected, and a directory that cannot be written stops no proxy.

#![expect(clippy::unwrap_used, reason = "helpers of tests may fail the test")]

use serde_json::Value;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

/// `rayguard run` before a head that is not there; ended with the value.
struct Process {
    child: Child,
    proxy: SocketAddr,
    admin: SocketAddr,
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn command(state: &Path, proxy: SocketAddr, admin: SocketAddr) -> Command {
    let nowhere = free_address();
    let config = std::env::temp_dir().join(format!("rayguard-record-{}.toml", proxy.port()));
    let text = format!(
        "upstream = 'http://{nowhere}'\nlisten = '{proxy}'\nstate_dir = '{}'\n[admin]\nlisten = '{admin}'\n\
         [metrics]\ndiscover = false\n[probe]\ninterval = '100ms'\ntimeout = '90ms'\n",
        state.display()
    );
    std::fs::write(&config, text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_rayguard"));
    command.args(["run", "--config"]).arg(config).stdin(Stdio::null());
    command
}

impl Process {
    fn start(state: &Path) -> Process {
        let (proxy, admin) = (free_address(), free_address());
        let child = command(state, proxy, admin).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let process = Process { child, proxy, admin };
        eventually("the admin listener answers", || process.page("/livez"));
        process
    }

    /// A page of the admin listener, if it answers.
    fn page(&self, path: &str) -> Option<String> {
        ask(self.admin, path)
    }

    fn kill_9(mut self) {
        self.child.kill().unwrap(); // SIGKILL
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ask(address: SocketAddr, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    let _ = stream.set_read_timeout(Some(Duration::from_secs(10)));
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    (!answer.is_empty()).then_some(answer)
}

/// Asks until there is something; only a failing test waits for a minute.
fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    for _ in 0..1200 {
        if let Some(found) = look() {
            return found;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("{what}: not within a minute");
}

fn scratch(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("rayguard-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    dir
}

/// Every line of the adjustment log; each must be JSON.
fn record(state: &Path) -> Vec<Value> {
    let Ok(text) = std::fs::read_to_string(state.join("adjustment-log/adjustments.jsonl")) else {
        return Vec::new();
    };
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_kill_leaves_whole_lines_and_the_next_run_goes_on_from_the_last_limits() {
    let state = scratch("kill");
    for run in 0..3_usize {
        let process = Process::start(&state);
        eventually("the start and the missing head are on the record", || {
            let record = record(&state);
            let starts = record.iter().filter(|line| line["event"] == "start").count();
            let downs = record.iter().filter(|line| line["event"] == "upstream").count();
            (starts == run + 1 && downs > run).then_some(())
        });
        eventually("last good limits are kept", || state.join("limits.json").exists().then_some(()));
        process.kill_9();
        let whole = record(&state);
        let numbers: Vec<u64> = whole.iter().map(|line| line["seq"].as_u64().unwrap()).collect();
        let expected: Vec<u64> = (1..=numbers.len() as u64).collect();
        assert_eq!(numbers, expected, "numbers go on across restarts, without a hole");
        let start = whole.iter().rfind(|line| line["event"] == "start").unwrap();
        let limits = start["limits"].as_array().unwrap();
        let warm = limits.iter().filter(|limit| limit["warm"] == true).count();
        assert_eq!(warm > 0, run > 0, "the first run has nothing to start from: {start}");
        let kept: Value = serde_json::from_slice(&std::fs::read(state.join("limits.json")).unwrap()).unwrap();
        assert!(kept.as_array().is_some_and(|kept| !kept.is_empty()));
    }
    std::fs::remove_dir_all(&state).unwrap();
}

#[test]
fn a_line_cut_off_by_a_crash_is_owned_up_to() {
    let state = scratch("torn");
    std::fs::create_dir_all(state.join("adjustment-log")).unwrap();
    std::fs::write(state.join("adjustment-log/adjustments.jsonl"), "{\"time\":1,\"seq\":1,\"at\":1,\"ev")
        .unwrap();
    let process = Process::start(&state);
    let gap = eventually("the gap is on the record", || {
        let text = std::fs::read_to_string(state.join("adjustment-log/adjustments.jsonl")).unwrap();
        let lines = text.lines().skip(1).filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.into_iter().find(|line| line["event"] == "gap")
    });
    assert!(gap["torn_bytes"].as_u64() > Some(0), "{gap}");
    drop(process);
    std::fs::remove_dir_all(&state).unwrap();
}

#[test]
fn a_second_process_on_the_same_state_is_turned_away_by_name_and_the_first_stays() {
    let state = scratch("second");
    let first = Process::start(&state);
    let Output { status, stderr, .. } = command(&state, free_address(), free_address()).output().unwrap();
    let said = String::from_utf8_lossy(&stderr);
    assert!(!status.success());
    assert!(said.contains(&format!("in use by process {}", first.child.id())), "{said}");
    assert!(said.contains("--state-dir"), "{said}");
    assert!(first.page("/livez").is_some());
    // A lock ends with its process, however that ends.
    first.kill_9();
    let next = Process::start(&state);
    drop(next);
    std::fs::remove_dir_all(&state).unwrap();
}

#[test]
fn where_nothing_can_be_written_the_proxy_stands_and_an_alert_says_so() {
    // Not even the superuser makes a directory there.
    let process = Process::start(Path::new("/proc/rayguard"));
    let refused = ask(process.proxy, "/api/jobs/").unwrap();
    assert!(refused.contains("rayguard:"), "the proxy answers for the head that is gone: {refused}");
    eventually("lost lines are counted", || {
        let page = process.page("/metrics")?;
        let lost =
            page.lines().find(|line| line.starts_with("rayguard_adjustment_log_lost_total"))?.to_owned();
        (!lost.ends_with(" 0")).then_some(())
    });
    eventually("the alert stands", || {
        let alerts = process.page("/api/v1/alerts")?;
        alerts.contains("adjustment-log-gaps").then_some(())
    });
}
