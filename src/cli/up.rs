//! `rayguard up`: diagnose this host, run the proxy, and say what comes next.
//!
//! What a newcomer types first. It stops where `doctor` finds something that would keep the proxy
//! from its work, since a proxy in front of nothing teaches nothing; `run` starts all the same.

use std::io::{self, Write};

use crate::cli::doctor::{self, DoctorError, Finding, Health};
use crate::cli::run;
use crate::config::settings::{Address, Settings};
use crate::core::request::catalogue::Surface;

/// Diagnose this host, run the proxy, and print what to do next.
///
/// Takes the options of `run`. Exit codes: 0 ended by SIGINT or SIGTERM, 1 a check failed or the
/// proxy could not start.
#[derive(clap::Args, Clone, Debug, Default)]
#[group(id = "up")] // the options of `run` come with a group of their own
pub struct Args {
    /// As `run` takes them.
    #[command(flatten)]
    pub run: run::Args,
}

/// Why it is not up.
#[derive(Debug, thiserror::Error)]
pub enum UpError {
    /// Nothing could be diagnosed.
    #[error(transparent)]
    Doctor(#[from] DoctorError),
    /// The proxy could not start.
    #[error(transparent)]
    Run(#[from] run::RunError),
    /// The answer cannot be written.
    #[error("cannot write to standard output: {0}")]
    Output(#[from] io::Error),
}

/// Carries out the command; the number is the exit code.
pub fn run(args: &Args) -> Result<u8, UpError> {
    let findings = doctor::look(&run::settings(&args.run)?)?;
    let mut out = io::stdout().lock();
    if !show(&findings, &mut out)? {
        return Ok(1);
    }
    out.flush()?;
    drop(out);
    let ray = of(&findings, "ray").map_or_else(String::new, |ray| ray.found.clone());
    Ok(run::run_then(&args.run, move |settings| {
        let told = next(settings, &ray, &mut io::stdout().lock());
        if let Err(error) = told {
            tracing::warn!(%error, "could not print what to do next");
        }
    })?)
}

fn of<'a>(findings: &'a [Finding], subject: &str) -> Option<&'a Finding> {
    findings.iter().find(|finding| finding.subject == subject)
}

/// Prints what is not as it should be, and returns whether the proxy may start.
fn show(findings: &[Finding], out: &mut dyn Write) -> io::Result<bool> {
    let count = |health| findings.iter().filter(|finding| finding.health == health).count();
    for finding in findings.iter().filter(|finding| finding.health != Health::Ok) {
        doctor::print_finding(finding, out)?;
    }
    let failed = count(Health::Fail);
    writeln!(
        out,
        "{} OK, {} WARN, {failed} FAIL (`rayguard doctor` shows all)",
        count(Health::Ok),
        count(Health::Warn)
    )?;
    if failed > 0 {
        writeln!(out, "Not started. Fix what failed, or start regardless with `rayguard run`.")?;
    }
    Ok(failed == 0)
}

/// Where the files for a lasting installation are described.
const DEPLOYMENT: &str = concat!(env!("CARGO_PKG_REPOSITORY"), "/tree/main/config/deploy");

/// The three lines a newcomer needs next.
fn next(settings: &Settings, ray: &str, out: &mut dyn Write) -> io::Result<()> {
    let dashboard = settings.listeners.iter().find(|listener| listener.surface == Surface::Dashboard);
    let Some(listener) = dashboard.or_else(|| settings.listeners.first()) else { return Ok(()) };
    let (protected, url) = match dashboard {
        Some(_) => (format!("Ray {ray}"), url(&listener.address)),
        None => (listener.upstream.url(), url(&listener.address)),
    };
    writeln!(out, "\nrayguard is up and protects {protected}. Next:")?;
    match dashboard {
        Some(_) => {
            writeln!(out, "  export RAY_API_SERVER_ADDRESS={url}   # send Ray's CLI and SDK through it")?;
        }
        None => writeln!(out, "  send your requests to {url}")?,
    }
    match &settings.admin {
        Some(admin) if reached_by_default(&admin.listen) => {
            writeln!(
                out,
                "  rayguard status   # what passes and what is shed; as a page: {}",
                self::url(&admin.listen)
            )?;
        }
        Some(admin) => {
            let address = self::url(&admin.listen);
            writeln!(out, "  rayguard status --address {address}   # what passes and what is shed")?;
        }
        None => writeln!(out, "  set `admin.listen` to see what passes and what is shed")?,
    }
    writeln!(out, "  to keep it, with systemd, KubeRay, Helm or compose: {DEPLOYMENT}\n")?;
    out.flush()
}

/// Whether `rayguard status` finds it without being told where.
fn reached_by_default(admin: &Address) -> bool {
    matches!(admin, Address::Tcp(address) if address.port() == 9465)
}

/// As somebody on this host types it.
fn url(address: &Address) -> String {
    match address {
        Address::Tcp(tcp) if tcp.ip().is_unspecified() => format!("http://127.0.0.1:{}", tcp.port()),
        Address::Tcp(tcp) => format!("http://{tcp}"),
        Address::Unix(path) => format!("unix:{}", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Overrides, parse};

    fn told(text: &str) -> String {
        let settings = parse(text, "test", &Overrides::default()).unwrap();
        let mut out = Vec::new();
        next(&settings, "2.60.0 at http://127.0.0.1:8265", &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn three_lines_follow_with_the_addresses_of_the_configuration() {
        let said = told("");
        let lines: Vec<&str> = said.trim().lines().collect();
        assert_eq!(lines.len(), 4, "{said}");
        assert_eq!(lines[0], "rayguard is up and protects Ray 2.60.0 at http://127.0.0.1:8265. Next:");
        assert!(lines[1].contains("RAY_API_SERVER_ADDRESS=http://127.0.0.1:8266 "), "{said}");
        assert!(
            lines[2].contains("rayguard status ") && lines[2].contains("http://127.0.0.1:9465"),
            "{said}"
        );
        assert!(lines[3].contains("/config/deploy"), "{said}");
    }

    #[test]
    fn an_address_for_all_hosts_is_told_as_one_that_can_be_asked() {
        let said = told("listen = '0.0.0.0:9000'\n[admin]\nlisten = '127.0.0.1:9001'\n");
        assert!(said.contains("=http://127.0.0.1:9000 "), "{said}");
        assert!(said.contains("status --address http://127.0.0.1:9001 "), "{said}");
        assert!(told("[admin]\nlisten = 'off'\n").contains("set `admin.listen`"));
    }

    #[test]
    fn where_only_applications_are_proxied_nothing_is_said_of_rays_commands() {
        let said = told(
            "[[listen]]\naddress = '127.0.0.1:9000'\nkind = 'serve'\nupstream = 'http://127.0.0.1:8000'\n",
        );
        assert!(said.contains("protects http://127.0.0.1:8000.") && !said.contains("RAY_API"), "{said}");
    }

    #[test]
    fn a_check_that_failed_stops_it_and_a_warning_does_not() {
        let finding = |health, found: &str| Finding {
            subject: "ray".into(),
            health,
            found: found.into(),
            remedy: "start it".into(),
        };
        let show_all = |findings: &[Finding]| {
            let mut out = Vec::new();
            let starts = show(findings, &mut out).unwrap();
            (starts, String::from_utf8(out).unwrap())
        };
        let (starts, said) = show_all(&[finding(Health::Ok, "here"), finding(Health::Warn, "slow")]);
        assert!(starts && said.contains("1 OK, 1 WARN, 0 FAIL"), "{said}");
        assert!(!said.contains("here") && said.contains("-> start it"), "{said}");
        let (starts, said) = show_all(&[finding(Health::Fail, "gone")]);
        assert!(!starts && said.contains("Not started.") && said.contains("rayguard run"), "{said}");
    }
}
