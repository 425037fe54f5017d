//! Network namespaces: one for each node, one for the clients, one for what is between them.
//!
//! ```text
//!   us-east-core ─┐                                             ┌─ eu-west-core
//!   10.77.1.2     ├─ bridge us-east ── WAN ── bridge eu-west ───┤  10.77.2.2
//!   us-east-edge ─┘  10.77.1.1        (nft)   10.77.2.1         └─ eu-west-edge
//!   10.77.1.3                           │                          10.77.2.3
//!                                bridge clients ── the clients of the test
//! ```
//!
//! The WAN forwards between the bridges, and drops what goes from one to another as its sets say: all of it, or 30 %. Nodes of one region
//! meet at their bridge, and clients come from one of their own: neither is in a set. Nothing of this is in the namespace of the
//! machine, so that addresses and names are nobody else's, and several runs do not meet.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Where `ip netns` keeps the namespaces that have names.
const NAMED: &str = "/run/netns";
/// Names of namespaces begin with this, the process and a number: so what a killed run left is known, and removed.
const PREFIX: &str = "iris-test-";
/// The namespace that the others are connected by.
const BETWEEN: &str = "wan";
/// The namespace of the clients, and their bridge.
pub const CLIENTS: &str = "clients";
/// A datagram that is not there after so long is lost: what is between the namespaces takes microseconds.
const ARRIVES_WITHIN: Duration = Duration::from_millis(300);
/// What is dropped, and counted.
const RULES: &str = "
table ip wan {
    set cut { type ifname . ifname; }
    set lossy { type ifname . ifname; }
    counter cut { }
    counter lossy { }
    chain forward {
        type filter hook forward priority 0; policy accept;
        iifname . oifname @cut counter name cut drop
        iifname . oifname @lossy numgen random mod 100 < 30 counter name lossy drop
    }
}
";

/// What becomes of packets from one region to another; the name of a set and of a counter in [`RULES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Harm {
    /// All are dropped.
    Cut,
    /// 30 % are dropped.
    Lossy,
}

impl Harm {
    fn name(self) -> &'static str {
        match self {
            Self::Cut => "cut",
            Self::Lossy => "lossy",
        }
    }
}

/// Namespaces, as long as it lives.
pub struct Wan {
    prefix: String,
    /// The names of the namespaces.
    names: Vec<String>,
    /// The addresses of the nodes, and of the clients.
    addrs: BTreeMap<String, Ipv4Addr>,
}

impl Wan {
    /// A bridge for each of these regions with a namespace for each of its nodes, and one for clients; or why not, and what helps.
    pub fn start(regions: &[(&str, &[&str])]) -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err(
                "network namespaces need root, or CAP_NET_ADMIN and CAP_SYS_ADMIN in a container".to_owned(),
            );
        }
        run("ip", &["-V"], "")?;
        run("nft", &["--version"], "")?;
        remove_leftovers();
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut wan = Self {
            prefix: format!("{PREFIX}{}-{number}-", std::process::id()),
            names: Vec::new(),
            addrs: BTreeMap::new(),
        };
        let between = wan.add(BETWEEN)?;
        let clients: (&str, &[&str]) = (CLIENTS, &[CLIENTS]);
        for (subnet, (bridge, hosts)) in regions.iter().copied().chain([clients]).enumerate() {
            ip(&between, &["link", "add", bridge, "type", "bridge"])?;
            ip(
                &between,
                &[
                    "addr",
                    "add",
                    &format!("{}/24", addr(subnet, None)),
                    "dev",
                    bridge,
                ],
            )?;
            ip(&between, &["link", "set", bridge, "up"])?;
            for (host, name) in hosts.iter().enumerate() {
                wan.connect(&between, bridge, name, subnet, host)?;
            }
        }
        let forward = "echo 1 > /proc/sys/net/ipv4/ip_forward";
        run("ip", &["netns", "exec", &between, "sh", "-c", forward], "")?;
        run("ip", &["netns", "exec", &between, "nft", "-f", "-"], RULES)?;
        Ok(wan)
    }

    fn add(&mut self, name: &str) -> Result<String, String> {
        let name = format!("{}{name}", self.prefix);
        run("ip", &["netns", "add", &name], "")
            .map_err(|error| format!("{error}; a container needs CAP_SYS_ADMIN and CAP_NET_ADMIN"))?;
        self.names.push(name.clone());
        Ok(name)
    }

    /// A host at a bridge, in a namespace of its own.
    fn connect(
        &mut self,
        between: &str,
        bridge: &str,
        name: &str,
        subnet: usize,
        host: usize,
    ) -> Result<(), String> {
        let namespace = self.add(name)?;
        let port = format!("v{subnet}-{host}");
        let ends = [
            "link", "add", &port, "type", "veth", "peer", "name", "wan", "netns", &namespace,
        ];
        ip(between, &ends)?;
        ip(between, &["link", "set", &port, "master", bridge, "up"])?;
        let own = addr(subnet, Some(host));
        self.addrs.insert(name.to_owned(), own);
        ip(&namespace, &["addr", "add", &format!("{own}/24"), "dev", "wan"])?;
        for device in ["lo", "wan"] {
            ip(&namespace, &["link", "set", device, "up"])?;
        }
        let gateway = addr(subnet, None).to_string();
        ip(&namespace, &["route", "add", "default", "via", &gateway])
    }

    /// Does something on a thread in a namespace. What it makes there stays there: sockets, threads, processes.
    pub fn inside<T: Send>(&self, name: &str, done: impl FnOnce() -> T + Send) -> T {
        let path = Path::new(NAMED).join(format!("{}{name}", self.prefix));
        let inside = move || {
            let namespace = File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            done()
        };
        // What fails there is told under the name of the test.
        let test = std::thread::current().name().unwrap_or(name).to_owned();
        let thread = std::thread::Builder::new().name(test);
        std::thread::scope(|scope| match thread.spawn_scoped(scope, inside).unwrap().join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    /// From now on packets of these ways, each from one region to another, are harmed.
    pub fn begin(&self, harm: Harm, ways: &[(&str, &str)]) {
        let ways: Vec<String> = ways
            .iter()
            .map(|(from, to)| format!("\"{from}\" . \"{to}\""))
            .collect();
        let ways = format!("{{ {} }}", ways.join(", "));
        self.nft(&["add", "element", "ip", "wan", harm.name(), &ways]);
    }

    /// All ways are whole again.
    pub fn heal(&self, harm: Harm) {
        self.nft(&["flush", "set", "ip", "wan", harm.name()]);
    }

    /// Packets that were dropped.
    pub fn dropped(&self, harm: Harm) -> u64 {
        let told = self.nft(&["-j", "list", "counter", "ip", "wan", harm.name()]);
        let told: serde_json::Value = serde_json::from_str(&told).unwrap();
        let objects = told["nftables"].as_array().unwrap();
        let mut packets = objects
            .iter()
            .filter_map(|object| object["counter"]["packets"].as_u64());
        packets.next().unwrap_or_else(|| panic!("no counter in {told}"))
    }

    fn nft(&self, args: &[&str]) -> String {
        self.inside(BETWEEN, || run("nft", args, "")).unwrap()
    }

    /// Whether a datagram from a node gets to another one.
    pub fn passes(&self, from: &str, to: &str) -> bool {
        let bind = |name| self.inside(name, || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap());
        let (sends, receives) = (bind(from), bind(to));
        let port = receives.local_addr().unwrap().port();
        receives.set_read_timeout(Some(ARRIVES_WITHIN)).unwrap();
        sends.send_to(b"probe", (self.addr_of(to), port)).unwrap();
        let mut datagram = [0; 8];
        match receives.recv(&mut datagram) {
            Ok(length) => datagram[..length] == *b"probe",
            Err(error) => {
                assert!(
                    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
                    "{error}"
                );
                false
            }
        }
    }

    /// The names of all.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The address of a node.
    pub fn addr_of(&self, name: &str) -> Ipv4Addr {
        self.addrs[name]
    }
}

impl Drop for Wan {
    fn drop(&mut self) {
        for name in &self.names {
            // Its interfaces go with it, and the other ends of these.
            if let Err(error) = run("ip", &["netns", "del", name], "") {
                eprintln!("{error}");
            }
        }
    }
}

/// The namespaces that are there with names of ours.
pub fn named() -> Vec<String> {
    let Ok(folder) = std::fs::read_dir(NAMED) else {
        return Vec::new();
    };
    let names = folder.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|name| name.starts_with(PREFIX)).collect()
}

/// What runs left that were killed.
fn remove_leftovers() {
    for name in named() {
        let pid = name[PREFIX.len()..].split('-').next().unwrap_or_default();
        if !Path::new("/proc").join(pid).exists() {
            // Another run may remove it at the same time.
            let _ = run("ip", &["netns", "del", &name], "");
        }
    }
}

/// Of a bridge, or of a host at it.
fn addr(subnet: usize, host: Option<usize>) -> Ipv4Addr {
    let part = |number: usize| u8::try_from(number).unwrap();
    Ipv4Addr::new(10, 77, part(subnet + 1), part(host.map_or(1, |host| host + 2)))
}

fn ip(namespace: &str, args: &[&str]) -> Result<(), String> {
    run("ip", &[&["-n", namespace], args].concat(), "").map(drop)
}

/// Runs a command; what it printed, or what went wrong and what may help.
fn run(program: &str, args: &[&str], input: &str) -> Result<String, String> {
    let told = || format!("`{program} {}`", args.join(" "));
    let spawned = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = spawned.map_err(|error| match error.kind() {
        ErrorKind::NotFound => {
            format!("there is no `{program}` in the path; on Debian: apt-get install iproute2 nftables")
        }
        _ => format!("{}: {error}", told()),
    })?;
    // One that ends without reading says why by its exit code.
    let _ = std::io::Write::write_all(&mut child.stdin.take().expect("it is piped"), input.as_bytes());
    let output = child
        .wait_with_output()
        .map_err(|error| format!("{}: {error}", told()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{}: {}, {}", told(), output.status, said.trim()))
}
