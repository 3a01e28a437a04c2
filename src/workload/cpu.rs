//! CPU time of this process and of the nodes, where they run on this machine.
//!
//! A node is found as the process that listens at its loopback address (`/proc/net/tcp`,
//! `/proc/PID/fd`), if it is a `quorate`: a proxy that stands before a container is not taken for
//! the node. Where a node is not found, or has gone since, nothing is said of the nodes.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, ToSocketAddrs};
use std::path::Path;
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::unistd::{SysconfVar, sysconf};
use quorate_types::Endpoint;

/// The state of a socket that listens, in `/proc/net/tcp`.
const LISTENS: &str = "0A";
/// How a node's process is called.
const NAME: &str = "quorate";

/// Whose CPU time is measured.
#[derive(Debug, Clone, Default)]
pub(crate) struct Processes {
    nodes: Option<BTreeSet<u32>>,
}

/// CPU time so far.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct CpuTime {
    own: Duration,
    nodes: Option<Duration>,
}

impl Processes {
    /// Looks for the nodes at these addresses. Blocks for some milliseconds.
    pub(crate) fn find(nodes: &[Endpoint]) -> Self {
        let found: Option<BTreeSet<u32>> = nodes.iter().map(listener).collect();
        Self {
            nodes: found.filter(|found| !found.is_empty() && found.len() == nodes.len()),
        }
    }

    /// What they have used until now.
    pub(crate) fn cpu(&self) -> CpuTime {
        let nodes = self.nodes.as_ref();
        CpuTime {
            own: own().unwrap_or_default(),
            nodes: nodes.and_then(|pids| pids.iter().map(|pid| of(*pid)).sum()),
        }
    }
}

impl CpuTime {
    /// Seconds since `before`: this process's, and the nodes'.
    pub(crate) fn since(&self, before: &Self) -> (f64, Option<f64>) {
        let seconds = |now: Duration, then| now.saturating_sub(then).as_secs_f64();
        let nodes = self.nodes.zip(before.nodes);
        (
            seconds(self.own, before.own),
            nodes.map(|(now, then)| seconds(now, then)),
        )
    }
}

fn own() -> Option<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).ok()?;
    let of = |time: nix::sys::time::TimeVal| {
        let seconds = u64::try_from(time.tv_sec()).ok()?;
        let micros = u64::try_from(time.tv_usec()).ok()?;
        Some(Duration::from_secs(seconds) + Duration::from_micros(micros))
    };
    Some(of(usage.user_time())? + of(usage.system_time())?)
}

/// The process's name and its CPU time, from `/proc/PID/stat`.
fn stat(text: &str) -> Option<(&str, u64)> {
    let (before, after) = text.rsplit_once(')')?;
    let (_, name) = before.split_once('(')?;
    let mut fields = after.split_ascii_whitespace();
    // utime and stime are fields 14 and 15 of the line, 12 and 13 after the name.
    let user: u64 = fields.nth(11)?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((name, user + system))
}

fn of(pid: u32) -> Option<Duration> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, ticks) = stat(&text)?;
    let a_second = u64::try_from(sysconf(SysconfVar::CLK_TCK).ok()??).ok()?;
    Some(Duration::from_micros(ticks * 1_000_000 / a_second))
}

fn listener(endpoint: &Endpoint) -> Option<u32> {
    let mut addresses = (endpoint.host.as_str(), endpoint.port)
        .to_socket_addrs()
        .ok()?;
    if !addresses.all(|address| address.ip().is_loopback()) {
        return None;
    }
    let mut inodes = BTreeSet::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let text = fs::read_to_string(table).unwrap_or_default();
        inodes.extend(listening(&text, endpoint));
    }
    let links: BTreeSet<String> = inodes.iter().map(|i| format!("socket:[{i}]")).collect();
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let text = fs::read_to_string(entry.path().join("stat")).ok()?;
        let named = stat(&text)?.0.starts_with(NAME);
        (named && has_one_of(&entry.path().join("fd"), &links)).then_some(pid)
    })
}

fn has_one_of(fds: &Path, links: &BTreeSet<String>) -> bool {
    let Ok(fds) = fs::read_dir(fds) else {
        return false;
    };
    fds.flatten()
        .filter_map(|fd| fs::read_link(fd.path()).ok())
        .any(|link| link.to_str().is_some_and(|link| links.contains(link)))
}

/// The inodes of sockets that listen at an endpoint's port, at its address or at every one.
fn listening(table: &str, endpoint: &Endpoint) -> Vec<String> {
    let port = format!("{:04X}", endpoint.port);
    // As the kernel prints it: in the machine's byte order.
    let address = match endpoint.host.parse() {
        Ok(IpAddr::V4(ip)) => Some(format!("{:08X}", u32::from_ne_bytes(ip.octets()))),
        _ => None,
    };
    let matches = |local: &str| {
        local.split_once(':').is_some_and(|(at, number)| {
            let anywhere = at.bytes().all(|byte| byte == b'0');
            let there = address.as_deref().is_none_or(|wanted| wanted == at);
            number == port && (anywhere || there)
        })
    };
    let lines = table.lines().skip(1);
    lines
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
            (*state == LISTENS && matches(local)).then(|| (*inode).to_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn own_time_rises_with_work() {
        let processes = Processes::default();
        let before = processes.cpu();
        let mut sum = 0_u64;
        while own().unwrap() < before.own + Duration::from_millis(20) {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        let (own, nodes) = processes.cpu().since(&before);
        assert!(own >= 0.02, "{own}");
        assert_eq!(nodes, None);
    }

    #[test]
    fn a_name_with_blanks_and_brackets_does_not_shift_the_fields() {
        let line = "42 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 300 45 0 0 20";
        assert_eq!(stat(line), Some(("a) b (c", 345)));
    }

    #[test]
    fn the_socket_at_a_port_is_found_and_no_other_program_taken_for_a_node() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = Endpoint {
            host: "127.0.0.1".into(),
            port: socket.local_addr().unwrap().port(),
        };
        let table = fs::read_to_string("/proc/net/tcp").unwrap();
        assert_eq!(listening(&table, &endpoint).len(), 1);
        let elsewhere = Endpoint {
            host: "127.0.0.2".into(),
            ..endpoint.clone()
        };
        assert!(listening(&table, &elsewhere).is_empty());
        assert!(of(std::process::id()).is_some());
        let far = Endpoint {
            host: "192.0.2.1".into(),
            port: 1,
        };
        assert!(Processes::find(&[far]).nodes.is_none());
    }
}
