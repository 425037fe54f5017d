//! What two nodes tell each other first, and what makes them refuse one another.
//!
//! The first frame in each direction of a connection's one bidirectional stream is a [`PeerHello`], or a
//! [`Refusal`] instead. The protocol version comes first in it, and stays there in every later version.

use std::{
    cmp::Ordering,
    fmt,
    net::{IpAddr, SocketAddr},
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use rustls::pki_types::CertificateDer;

use crate::{
    core::ids::{Generation, NodeKey, NodeName, RegionId, Sharding},
    net::{
        certs::{PEER_NAME, cert_has_name, node_dns_name},
        frame::{Frame, put_frame},
    },
};

/// Version of the protocol between nodes.
pub const PEER_PROTOCOL: u16 = 6;

/// Kind of the frame that holds a [`PeerHello`].
const KIND_HELLO: u8 = 1;
/// Kind of the frame that holds a [`Refusal`].
const KIND_REFUSAL: u8 = 2;
/// Kind of the first frame of each one-way stream: which class of frames follows.
const KIND_CLASS: u8 = 3;

/// Greatest length field of a frame of the handshake: a hello is at most 130 bytes, a refusal's text 256.
pub(super) const MAX_HANDSHAKE_FRAME: u32 = 512;

/// What a connection is for. Each has its own, so that bulk never delays liveness.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Messages, logs, presence.
    Traffic,
    /// Membership.
    Gossip,
}

/// Who a node is and what it must have in common with its peers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerHello {
    /// Random number of the cluster.
    pub cluster_id: u128,
    /// Region and name, checked against the certificate.
    pub node: NodeKey,
    /// Grows at each start of the node.
    pub generation: Generation,
    /// Core tasks of the node.
    pub partitions: u8,
    /// Shard count and hash seed; must be the same everywhere.
    pub sharding: Sharding,
    /// Where the node accepts peers.
    pub addr: SocketAddr,
}

/// Why two nodes do not talk. It is told to the other side, too.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}: {detail}")]
pub struct Refusal {
    /// For programs.
    pub why: RefusalCode,
    /// The two values that do not fit.
    pub detail: String,
}

/// Reasons of a [`Refusal`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RefusalCode {
    /// Another version of the protocol between nodes.
    Protocol,
    /// A frame that is no hello.
    Malformed,
    /// Another cluster.
    Cluster,
    /// Another number of shards.
    ShardCount,
    /// Another hash seed.
    HashSeed,
    /// The claimed region and node are not in the certificate.
    NotInCertificate,
    /// Not the node, or not of the region, that was expected.
    Unexpected,
    /// The node met itself.
    Itself,
    /// A newer start of the same node was seen.
    OldGeneration,
    /// The one that refuses is an earlier start of the same node.
    EarlierStart,
    /// A reason that this version does not know.
    Other(u8),
}

impl RefusalCode {
    fn to_wire(self) -> u8 {
        match self {
            Self::Protocol => 1,
            Self::Malformed => 2,
            Self::Cluster => 3,
            Self::ShardCount => 4,
            Self::HashSeed => 5,
            Self::NotInCertificate => 6,
            Self::Unexpected => 7,
            Self::Itself => 8,
            Self::OldGeneration => 9,
            Self::EarlierStart => 10,
            Self::Other(code) => code,
        }
    }

    fn from_wire(code: u8) -> Self {
        match code {
            1 => Self::Protocol,
            2 => Self::Malformed,
            3 => Self::Cluster,
            4 => Self::ShardCount,
            5 => Self::HashSeed,
            6 => Self::NotInCertificate,
            7 => Self::Unexpected,
            8 => Self::Itself,
            9 => Self::OldGeneration,
            10 => Self::EarlierStart,
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for RefusalCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Protocol => "another protocol version",
            Self::Malformed => "no valid hello",
            Self::Cluster => "another cluster",
            Self::ShardCount => "another shard count",
            Self::HashSeed => "another hash seed",
            Self::NotInCertificate => "the certificate is for another node",
            Self::Unexpected => "another node than expected",
            Self::Itself => "the node connected to itself",
            Self::OldGeneration => "a newer start of this node was seen",
            Self::EarlierStart => "an earlier start of the same node",
            Self::Other(code) => return write!(f, "refusal {code}"),
        })
    }
}

impl Refusal {
    pub(super) fn new(why: RefusalCode, detail: impl Into<String>) -> Self {
        Self {
            why,
            detail: detail.into(),
        }
    }

    /// Longest detail on the wire, in bytes; the rest is cut.
    const MAX_DETAIL: usize = 256;

    pub(super) fn encode(&self) -> Bytes {
        let mut end = self.detail.len().min(Self::MAX_DETAIL);
        while !self.detail.is_char_boundary(end) {
            end -= 1;
        }
        encode_frame(KIND_REFUSAL, |out| {
            out.put_u8(self.why.to_wire());
            out.put_slice(&self.detail.as_bytes()[..end]);
        })
    }
}

/// The answer to a hello.
pub(super) enum Answer {
    Hello(PeerHello, Lane),
    Refused(Refusal),
}

/// Reads the first frame of a handshake.
pub(super) fn decode(frame: &Frame) -> Result<Answer, Refusal> {
    let mut payload = frame.payload.clone();
    match frame.kind {
        KIND_HELLO => PeerHello::decode(payload).map(|(hello, lane)| Answer::Hello(hello, lane)),
        KIND_REFUSAL if payload.has_remaining() => {
            let why = RefusalCode::from_wire(payload.get_u8());
            Ok(Answer::Refused(Refusal::new(
                why,
                String::from_utf8_lossy(&payload),
            )))
        }
        kind => Err(Refusal::new(
            RefusalCode::Malformed,
            format!("a frame of kind {kind} instead of a hello"),
        )),
    }
}

/// The first frame of a one-way stream.
pub(super) fn encode_class(class: u16) -> Bytes {
    encode_frame(KIND_CLASS, |out| out.put_u16(class))
}

pub(super) fn decode_class(frame: &Frame) -> Option<u16> {
    let payload: [u8; 2] = frame.payload.as_ref().try_into().ok()?;
    (frame.kind == KIND_CLASS).then(|| u16::from_be_bytes(payload))
}

fn encode_frame(kind: u8, payload: impl FnOnce(&mut BytesMut)) -> Bytes {
    let mut out = BytesMut::new();
    put_frame(&mut out, kind, payload);
    out.freeze()
}

impl PeerHello {
    pub(super) fn encode(&self, lane: Lane) -> Bytes {
        encode_frame(KIND_HELLO, |out| {
            out.put_u16(PEER_PROTOCOL);
            out.put_u8(match lane {
                Lane::Traffic => 0,
                Lane::Gossip => 1,
            });
            out.put_u128(self.cluster_id);
            out.put_u64(self.generation.0);
            out.put_u8(self.partitions);
            out.put_u32(self.sharding.count);
            out.put_u64(self.sharding.seed);
            match self.addr.ip() {
                IpAddr::V4(ip) => {
                    out.put_u8(4);
                    out.put_slice(&ip.octets());
                }
                IpAddr::V6(ip) => {
                    out.put_u8(6);
                    out.put_slice(&ip.octets());
                }
            }
            out.put_u16(self.addr.port());
            for name in [self.node.region.as_str(), self.node.node.as_str()] {
                // Names are at most 32 bytes by their type.
                out.put_u8(name.len() as u8);
                out.put_slice(name.as_bytes());
            }
        })
    }

    fn decode(mut payload: Bytes) -> Result<(Self, Lane), Refusal> {
        let short = |_| Refusal::new(RefusalCode::Malformed, "a hello that ends too early");
        let protocol = payload.try_get_u16().map_err(short)?;
        if protocol != PEER_PROTOCOL {
            let detail = format!("version {protocol}; this node speaks {PEER_PROTOCOL}");
            return Err(Refusal::new(RefusalCode::Protocol, detail));
        }
        let lane = match payload.try_get_u8().map_err(short)? {
            0 => Lane::Traffic,
            1 => Lane::Gossip,
            other => {
                return Err(Refusal::new(
                    RefusalCode::Malformed,
                    format!("lane {other}; expected 0 or 1"),
                ));
            }
        };
        let cluster_id = payload.try_get_u128().map_err(short)?;
        let generation = Generation(payload.try_get_u64().map_err(short)?);
        let partitions = payload.try_get_u8().map_err(short)?;
        let count = payload.try_get_u32().map_err(short)?;
        let seed = payload.try_get_u64().map_err(short)?;
        let ip = match payload.try_get_u8().map_err(short)? {
            4 => IpAddr::from(payload.try_get_u32().map_err(short)?.to_be_bytes()),
            6 => IpAddr::from(payload.try_get_u128().map_err(short)?.to_be_bytes()),
            other => {
                let detail = format!("address family {other}; expected 4 or 6");
                return Err(Refusal::new(RefusalCode::Malformed, detail));
            }
        };
        let port = payload.try_get_u16().map_err(short)?;
        let region = decode_name(&mut payload, RegionId::new)?;
        let node = decode_name(&mut payload, NodeName::new)?;
        let hello = Self {
            cluster_id,
            node: NodeKey { region, node },
            generation,
            partitions,
            sharding: Sharding { count, seed },
            addr: SocketAddr::new(ip, port),
        };
        Ok((hello, lane))
    }

    /// Judges what the other side claims: `self` is this node.
    pub(super) fn judge(&self, other: &Self, cert: &CertificateDer<'_>) -> Result<(), Refusal> {
        let refuse = |why, detail: String| Err(Refusal::new(why, detail));
        let own_name = node_dns_name(other.node.region.as_str(), other.node.node.as_str());
        let named = own_name.is_ok_and(|name| cert_has_name(cert, &name)) && cert_has_name(cert, PEER_NAME);
        if !named {
            return refuse(
                RefusalCode::NotInCertificate,
                format!("it claims to be {}", other.node),
            );
        }
        if other.cluster_id != self.cluster_id {
            let detail = format!("{:032x} instead of {:032x}", other.cluster_id, self.cluster_id);
            return refuse(RefusalCode::Cluster, detail);
        }
        if other.sharding.count != self.sharding.count {
            let detail = format!("{} instead of {}", other.sharding.count, self.sharding.count);
            return refuse(RefusalCode::ShardCount, detail);
        }
        if other.sharding.seed != self.sharding.seed {
            let detail = format!(
                "{:016x} instead of {:016x}",
                other.sharding.seed, self.sharding.seed
            );
            return refuse(RefusalCode::HashSeed, detail);
        }
        if other.node == self.node {
            let (theirs, ours) = (other.generation, self.generation);
            let why = match theirs.cmp(&ours) {
                Ordering::Less => RefusalCode::OldGeneration,
                Ordering::Equal => RefusalCode::Itself,
                Ordering::Greater => RefusalCode::EarlierStart,
            };
            return refuse(
                why,
                format!(
                    "generation {theirs} of {}; this is {ours}, at {}",
                    self.node, self.addr
                ),
            );
        }
        Ok(())
    }
}

fn decode_name<T>(
    payload: &mut Bytes,
    parse: impl FnOnce(&str) -> Result<T, crate::core::ids::IdError>,
) -> Result<T, Refusal> {
    let malformed = |detail: String| Refusal::new(RefusalCode::Malformed, detail);
    let length = usize::from(
        payload
            .try_get_u8()
            .map_err(|_| malformed("a name is missing".to_owned()))?,
    );
    if payload.remaining() < length {
        return Err(malformed("a name that ends too early".to_owned()));
    }
    let bytes = payload.split_to(length);
    let text = std::str::from_utf8(&bytes).map_err(|_| malformed("a name that is not UTF-8".to_owned()))?;
    parse(text).map_err(|error| malformed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::net::frame::FrameDecoder;

    fn hello() -> PeerHello {
        PeerHello {
            cluster_id: 0x0123_4567_89ab_cdef,
            node: NodeKey {
                region: RegionId::new("us-east").unwrap(),
                node: NodeName::new("core-1").unwrap(),
            },
            generation: Generation(77),
            partitions: 2,
            sharding: Sharding { count: 1024, seed: 9 },
            addr: "[::1]:4433".parse().unwrap(),
        }
    }

    fn frame(bytes: Bytes) -> Frame {
        let mut frames = Vec::new();
        FrameDecoder::new(MAX_HANDSHAKE_FRAME)
            .push(bytes, &mut frames)
            .unwrap();
        frames.remove(0)
    }

    #[test]
    fn a_hello_comes_back() {
        for addr in ["[::1]:4433", "10.0.0.1:1"] {
            let hello = PeerHello {
                addr: addr.parse().unwrap(),
                ..hello()
            };
            let Ok(Answer::Hello(back, lane)) = decode(&frame(hello.encode(Lane::Gossip))) else {
                panic!("a hello decodes as a hello")
            };
            assert_eq!((back, lane), (hello, Lane::Gossip));
        }
        assert_eq!(decode_class(&frame(encode_class(513))), Some(513));
    }

    #[test]
    fn another_version_is_told_apart_from_nonsense() {
        let mut frame = frame(hello().encode(Lane::Traffic));
        let mut payload = BytesMut::from(&frame.payload[..]);
        payload[1] = PEER_PROTOCOL as u8 + 1;
        frame.payload = payload.freeze();
        assert!(matches!(
            decode(&frame),
            Err(Refusal {
                why: RefusalCode::Protocol,
                ..
            })
        ));
        frame.payload = Bytes::from_static(&[0, PEER_PROTOCOL as u8, 0]);
        assert!(matches!(
            decode(&frame),
            Err(Refusal {
                why: RefusalCode::Malformed,
                ..
            })
        ));
    }

    #[test]
    fn a_refusal_comes_back_cut_to_its_limit() {
        let refusal = Refusal::new(RefusalCode::Cluster, "é".repeat(300));
        let Ok(Answer::Refused(back)) = decode(&frame(refusal.encode())) else {
            panic!("a refusal")
        };
        assert_eq!(back, Refusal::new(RefusalCode::Cluster, "é".repeat(128)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn arbitrary_bytes_never_panic(kind in 0u8..5, cut in 0usize..120, payload in prop::collection::vec(any::<u8>(), 0..150)) {
            let _ = decode(&Frame::new(kind, payload.clone()));
            let good = frame(hello().encode(Lane::Traffic)).payload;
            let _ = decode(&Frame::new(KIND_HELLO, good.slice(..cut.min(good.len()))));
            let _ = decode_class(&Frame::new(kind, payload));
        }
    }
}
