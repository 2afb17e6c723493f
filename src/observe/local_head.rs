//! The head that runs on this host, by its processes.
//!
//! A head that was started with `--temp-dir DIR` writes its list of exporters into `DIR`, and before Ray 2.5x the
//! dashboard does not give that list. But the dashboard's own command line has the directory, and the head's
//! address: `dashboard.py --port=8265 --temp-dir=DIR ... --node-ip-address=192.0.2.2`, the same from Ray 2.9 to 2.60.
//!
//! Several heads may run on one host, so the one is meant whose port is the upstream's. A command line is whatever
//! its process says; so it counts only if the process belongs to the user who listens on that port
//! (`/proc/net/tcp`), who answers our requests anyhow. A process of another network namespace is another host's.

use std::fs;
use std::net::{IpAddr, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Where the system tells of its processes.
pub const PROC: &str = "/proc";

/// What a head's own processes say of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LocalHead {
    /// Where it keeps its sessions and its list of exporters.
    pub temp_dir: PathBuf,
    /// The address that it goes by.
    pub address: Option<String>,
}

/// The head on this host whose dashboard listens on `port`.
pub fn find(proc: &Path, port: u16) -> Option<LocalHead> {
    let owners = listeners(proc, port);
    let here = fs::read_link(proc.join("self/ns/net")).ok();
    let elsewhere = |process: &Path| {
        let there = fs::read_link(process.join("ns/net")).ok();
        there.is_some() && here.is_some() && there != here
    };
    fs::read_dir(proc).ok()?.flatten().map(|entry| entry.path()).find_map(|process| {
        process.file_name()?.to_str()?.parse::<u32>().ok()?;
        let line = fs::read(process.join("cmdline")).ok()?;
        let head = read(&line, port)?;
        let owner = fs::metadata(&process).ok()?.uid();
        (owners.contains(&owner) && !elsewhere(&process)).then_some(head)
    })
}

/// Whether this is an address of this host's own. Nothing is sent: the system is asked for the way there.
pub fn is_of_this_host(address: IpAddr) -> bool {
    if address.is_loopback() {
        return true;
    }
    let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let way = UdpSocket::bind(any).and_then(|socket| {
        socket.connect((address, 9))?;
        socket.local_addr()
    });
    way.is_ok_and(|from| from.ip() == address)
}

/// A dashboard's command line, if it is one and has this port.
fn read(line: &[u8], port: u16) -> Option<LocalHead> {
    let words: Vec<&str> =
        line.split(|&byte| byte == 0).filter_map(|word| str::from_utf8(word).ok()).collect();
    words.iter().find(|word| word.ends_with("/dashboard/dashboard.py"))?;
    let option = |name: &str| words.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    if option("--port")?.parse() != Ok(port) {
        return None;
    }
    let temp_dir = PathBuf::from(option("--temp-dir")?);
    let address = option("--node-ip-address").or_else(|| Some(option("--gcs-address")?.rsplit_once(':')?.0));
    temp_dir.is_absolute().then(|| LocalHead { temp_dir, address: address.map(str::to_owned) })
}

/// The users who listen on a port.
fn listeners(proc: &Path, port: u16) -> Vec<u32> {
    const LISTENS: &str = "0A";
    let tables = ["net/tcp", "net/tcp6"].map(|name| fs::read_to_string(proc.join(name)).unwrap_or_default());
    let owner = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (local, state, owner) = (fields.get(1)?, fields.get(3)?, fields.get(7)?);
        let at = u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()?;
        (at == port && *state == LISTENS).then(|| owner.parse().ok()).flatten()
    };
    tables.iter().flat_map(|table| table.lines().filter_map(owner)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory as `/proc`, with these processes and one listener; gone with the value.
    struct Proc(PathBuf);

    impl Proc {
        fn new(name: &str, lines: &[&str], port: u16, owner: u32) -> Proc {
            let place = std::env::temp_dir().join(format!("rayguard-proc-{name}-{}", std::process::id()));
            fs::create_dir_all(place.join("net")).unwrap();
            let table = format!(
                "  sl  local_address rem_address st\n   0: 0100007F:{port:04X} 00000000:0000 0A 00000000:00000000 00:00000000 00000000 {owner} 0 1\n"
            );
            fs::write(place.join("net/tcp"), table).unwrap();
            for (at, line) in lines.iter().enumerate() {
                let process = place.join((at + 1).to_string());
                fs::create_dir_all(&process).unwrap();
                fs::write(process.join("cmdline"), line.replace(' ', "\0")).unwrap();
            }
            Proc(place)
        }

        fn me(&self) -> u32 {
            fs::metadata(&self.0).unwrap().uid()
        }
    }

    impl Drop for Proc {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// As Ray 2.9 to 2.60 start it.
    fn line(port: u16, dir: &str) -> String {
        format!(
            "/venv/bin/python /venv/ray/dashboard/dashboard.py --host=127.0.0.1 --port={port} --port-retries=0 \
             --temp-dir={dir} --log-dir={dir}/session_1/logs --session-dir={dir}/session_1 \
             --gcs-address=192.0.2.2:6379 --node-ip-address=192.0.2.3"
        )
    }

    #[test]
    fn of_several_heads_the_one_with_the_upstreams_port_is_found() {
        let lines = [line(8265, "/tmp/ray"), line(18265, "/data/ray"), "sleep 1".to_owned()];
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let me = Proc::new("whoami", &[], 1, 0).me();
        let proc = Proc::new("several", &lines, 18265, me);
        let found = find(&proc.0, 18265).unwrap();
        assert_eq!((&*found.temp_dir, found.address.as_deref()), (Path::new("/data/ray"), Some("192.0.2.3")));
        assert_eq!(find(&proc.0, 8265), None, "nothing listens there");
        assert_eq!(find(&proc.0, 1), None);
    }

    #[test]
    fn a_command_line_of_another_user_than_who_listens_is_not_believed() {
        let line = line(8265, "/tmp/evil");
        let me = Proc::new("whoami-2", &[], 1, 0).me();
        let proc = Proc::new("other", &[&line], 8265, me + 1);
        assert_eq!(find(&proc.0, 8265), None);
    }

    #[test]
    fn what_is_no_dashboard_or_has_no_directory_is_none() {
        let without = line(8265, "/d").replace("--temp-dir=/d", "");
        for wrong in [without, line(8265, "relative"), line(8265, "/d").replace("dashboard.py", "agent.py")] {
            assert_eq!(read(wrong.replace(' ', "\0").as_bytes(), 8265), None, "{wrong}");
        }
        let older = line(8265, "/d").replace("--node-ip-address=192.0.2.3", "");
        assert_eq!(
            read(older.replace(' ', "\0").as_bytes(), 8265).unwrap().address.as_deref(),
            Some("192.0.2.2")
        );
    }

    #[test]
    fn this_hosts_addresses_are_known_from_others() {
        assert!(is_of_this_host([127, 0, 0, 1].into()));
        assert!(!is_of_this_host([192, 0, 2, 250].into()));
    }
}
