//! Addresses as people and other nodes are told them: a host by name or by IP, and a port.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest name of a host, in bytes (RFC 1035, 2.3.4, as text without the last dot).
const MAX_HOST_BYTES: usize = 253;
/// Longest part of it between dots (RFC 1035, 2.3.4).
const MAX_LABEL_BYTES: usize = 63;

/// `host:port`. The host is a name, an IPv4 address, or an IPv6 address in brackets.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostPort {
    host: Host,
    port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Host {
    Ip(IpAddr),
    Name(String),
}

/// A text that is no [`HostPort`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected HOST:PORT or IP:PORT, such as edge-1.example.com:7400, 10.0.0.5:7400 or [fd00::5]:7400")]
pub struct NotHostPort;

impl HostPort {
    /// The port; 0 where it stands for one that is not chosen yet.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The same host, with `port` in the place of a 0.
    pub fn or_port(mut self, port: u16) -> Self {
        if self.port == 0 {
            self.port = port;
        }
        self
    }

    /// Whether it is an address to listen at that nobody can connect to: `0.0.0.0` or `[::]`.
    pub fn is_wildcard(&self) -> bool {
        matches!(self.host, Host::Ip(ip) if is_wildcard(ip))
    }
}

/// Whether `ip` stands for all addresses of a machine, also as an IPv4 address written as IPv6.
pub fn is_wildcard(ip: IpAddr) -> bool {
    ip.to_canonical().is_unspecified()
}

impl From<SocketAddr> for HostPort {
    fn from(addr: SocketAddr) -> Self {
        Self {
            host: Host::Ip(addr.ip()),
            port: addr.port(),
        }
    }
}

impl FromStr for HostPort {
    type Err = NotHostPort;

    fn from_str(text: &str) -> Result<Self, NotHostPort> {
        let (host, port) = text.rsplit_once(':').ok_or(NotHostPort)?;
        // `u16` alone would take "+1".
        if !port.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(NotHostPort);
        }
        let port = port.parse().map_err(|_| NotHostPort)?;
        let host = if let Some(v6) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Host::Ip(v6.parse::<Ipv6Addr>().map_err(|_| NotHostPort)?.into())
        } else if let Ok(v4) = host.parse::<Ipv4Addr>() {
            Host::Ip(v4.into())
        } else if is_host_name(host) {
            Host::Name(host.to_owned())
        } else {
            return Err(NotHostPort);
        };
        Ok(Self { host, port })
    }
}

/// Letters, digits, `-` and `_` between dots. Numbers alone are no name: `10.0.5` would be looked up as an IP address.
fn is_host_name(host: &str) -> bool {
    let is_label = |label: &str| {
        (1..=MAX_LABEL_BYTES).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    let last = host.rsplit('.').next().unwrap_or_default();
    host.len() <= MAX_HOST_BYTES
        && host.split('.').all(is_label)
        && !last.bytes().all(|byte| byte.is_ascii_digit())
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(ip) => SocketAddr::new(*ip, self.port).fmt(f),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

impl TryFrom<String> for HostPort {
    type Error = NotHostPort;

    fn try_from(text: String) -> Result<Self, NotHostPort> {
        text.parse()
    }
}

impl From<HostPort> for String {
    fn from(address: HostPort) -> Self {
        address.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_ips_with_a_port_are_read_and_written_the_same() {
        let longest = format!(
            "{}:65535",
            ["a".repeat(63).as_str(); 3].join(".") + "." + &"b".repeat(61)
        );
        for good in [
            "edge-1.example.com:7400",
            "localhost:0",
            "10.0.0.5:7400",
            "[fd00::5]:7400",
            "a_b.c:1",
            &longest,
        ] {
            assert_eq!(
                good.parse::<HostPort>().map(|it| it.to_string()).as_deref(),
                Ok(good)
            );
        }
        let too_long = format!("c{longest}");
        for bad in [
            "",
            ":1",
            "localhost",
            "localhost:",
            "localhost:+1",
            "localhost:65536",
            "fd00::5:7400",
            "[10.0.0.5]:7400",
            "10.0.5:7400",
            "10.0.0.256:7400",
            "-a:1",
            "a-:1",
            "a..b:1",
            "a.:1",
            "a b:1",
            "user@a:1",
            "https://a:1",
            &too_long,
        ] {
            assert_eq!(bad.parse::<HostPort>(), Err(NotHostPort), "{bad}");
        }
    }

    #[test]
    fn wildcards_are_known_and_a_port_is_filled_in_where_there_is_none() {
        let read = |text: &str| text.parse::<HostPort>().unwrap();
        for wildcard in ["0.0.0.0:1", "[::]:1", "[::ffff:0.0.0.0]:1"] {
            assert!(read(wildcard).is_wildcard(), "{wildcard}");
        }
        for one in ["0.0.0.1:1", "[::1]:1", "zero:1"] {
            assert!(!read(one).is_wildcard(), "{one}");
        }
        assert_eq!(read("a:0").or_port(7), read("a:7"));
        assert_eq!(read("a:1").or_port(7), read("a:1"));
    }
}
