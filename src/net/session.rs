//! TLS of connections that are many and idle: what rustls needs for a handshake is dropped when that is over, and the keys of
//! the next key update are made when they are first used. Together that is 5 KB of each connection.
//!
//! A server that sends no tickets and takes no early data has nothing to say after the handshake (RFC 9001, 4.1.3), and
//! nothing to hear: its clients may not send TLS messages any more. Key updates need the traffic secrets alone.

use std::{
    any::Any,
    io::Cursor,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use bytes::BytesMut;
use quinn::{
    ConnectionId, Side, TransportErrorCode,
    crypto::{
        self, CryptoError, ExportKeyingMaterialError, HeaderKey, KeyPair, Keys, PacketKey, ServerConfig as _,
        UnsupportedVersion, rustls::QuicServerConfig,
    },
};
use quinn_proto::{TransportError, transport_parameters::TransportParameters};
use rustls::{
    AlertDescription,
    quic::{KeyChange, PacketKeySet, Secrets, ServerConnection, Version},
};

/// Makes sessions that are small once they are established. Without tickets, early data and certificates of clients.
pub(super) struct LeanServer {
    tls: Arc<rustls::ServerConfig>,
    /// What does not depend on a session.
    quic: Arc<QuicServerConfig>,
}

impl LeanServer {
    pub(super) fn new(tls: Arc<rustls::ServerConfig>, quic: Arc<QuicServerConfig>) -> Self {
        debug_assert!(tls.send_tls13_tickets == 0 && tls.max_early_data_size == 0);
        Self { tls, quic }
    }
}

impl crypto::ServerConfig for LeanServer {
    fn initial_keys(&self, version: u32, dst_cid: &ConnectionId) -> Result<Keys, UnsupportedVersion> {
        self.quic.initial_keys(version, dst_cid)
    }

    fn retry_tag(&self, version: u32, orig_dst_cid: &ConnectionId, packet: &[u8]) -> [u8; 16] {
        self.quic.retry_tag(version, orig_dst_cid, packet)
    }

    fn start_session(
        self: Arc<Self>,
        version: u32,
        params: &TransportParameters,
    ) -> Box<dyn crypto::Session> {
        let mut encoded = Vec::new();
        params.write(&mut encoded);
        // A version that `initial_keys` refuses does not come here.
        let drafts = 0xff00_001d..=0xff00_0020;
        let of_tls = if drafts.contains(&version) {
            Version::V1Draft
        } else {
            Version::V1
        };
        let tls = ServerConnection::new(self.tls.clone(), of_tls, encoded)
            .expect("the configuration allows TLS 1.3, and early data of no other size than QUIC allows");
        Box::new(Session {
            quic: self.quic.clone(),
            version,
            tls: Some(Box::new(tls)),
            told: false,
            secrets: None,
            phase: None,
        })
    }
}

struct Session {
    quic: Arc<QuicServerConfig>,
    version: u32,
    /// While the handshake lasts.
    tls: Option<Box<ServerConnection>>,
    /// Whether it was said that handshake data is there.
    told: bool,
    /// Behind the first keys, until the keys of the first update are asked for.
    secrets: Option<Box<Secrets>>,
    /// The keys that were asked for last.
    phase: Option<Arc<NextKeys>>,
}

impl crypto::Session for Session {
    fn initial_keys(&self, dst_cid: &ConnectionId, _: Side) -> Keys {
        self.quic
            .initial_keys(self.version, dst_cid)
            .unwrap_or_else(|_| unreachable!("the session was started with this version"))
    }

    /// Nobody asks: there is one protocol on the address of clients.
    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        None
    }

    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        None
    }

    fn early_crypto(&self) -> Option<(Box<dyn HeaderKey>, Box<dyn PacketKey>)> {
        None
    }

    fn early_data_accepted(&self) -> Option<bool> {
        None
    }

    fn is_handshaking(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.is_handshaking())
    }

    fn read_handshake(&mut self, buf: &[u8]) -> Result<bool, TransportError> {
        let Some(tls) = &mut self.tls else {
            return Err(TransportError {
                code: TransportErrorCode::crypto(AlertDescription::UnexpectedMessage.into()),
                frame: None,
                reason: "a TLS message after the handshake".to_owned(),
            });
        };
        tls.read_hs(buf).map_err(|error| match tls.alert() {
            Some(alert) => TransportError {
                code: TransportErrorCode::crypto(alert.into()),
                frame: None,
                reason: error.to_string(),
            },
            None => TransportError {
                code: TransportErrorCode::PROTOCOL_VIOLATION,
                frame: None,
                reason: format!("TLS error: {error}"),
            },
        })?;
        let there = tls.alpn_protocol().is_some() || tls.server_name().is_some() || !tls.is_handshaking();
        Ok(there && !std::mem::replace(&mut self.told, true))
    }

    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        let Some(encoded) = self.tls.as_ref().and_then(|tls| tls.quic_transport_parameters()) else {
            return Ok(None);
        };
        Ok(Some(TransportParameters::read(
            Side::Server,
            &mut Cursor::new(encoded),
        )?))
    }

    fn write_handshake(&mut self, buf: &mut Vec<u8>) -> Option<Keys> {
        let tls = self.tls.as_mut()?;
        let keys = match tls.write_hs(buf) {
            Some(KeyChange::Handshake { keys }) => keys,
            Some(KeyChange::OneRtt { keys, next }) => {
                self.secrets = Some(Box::new(next));
                keys
            }
            None => {
                if buf.is_empty() && !tls.is_handshaking() {
                    self.tls = None;
                }
                return None;
            }
        };
        Some(Keys {
            header: KeyPair {
                local: Box::new(keys.local.header),
                remote: Box::new(keys.remote.header),
            },
            packet: KeyPair {
                local: Box::new(keys.local.packet),
                remote: Box::new(keys.remote.packet),
            },
        })
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        let secrets = match self.phase.take() {
            Some(before) => before.behind(),
            None => *self.secrets.take()?,
        };
        let phase = Arc::new(NextKeys::after(secrets));
        self.phase = Some(phase.clone());
        let key = |local| -> Box<dyn PacketKey> {
            Box::new(NextKey {
                of: phase.clone(),
                local,
            })
        };
        Some(KeyPair {
            local: key(true),
            remote: key(false),
        })
    }

    fn is_valid_retry(&self, _: &ConnectionId, _: &[u8], _: &[u8]) -> bool {
        false
    }

    fn export_keying_material(
        &self,
        _: &mut [u8],
        _: &[u8],
        _: &[u8],
    ) -> Result<(), ExportKeyingMaterialError> {
        Err(ExportKeyingMaterialError)
    }
}

/// The packet keys of one key phase, expanded at their first use: most connections never see a key update.
struct NextKeys {
    /// Those before the phase until the keys are made; then those behind it.
    secrets: Mutex<Secrets>,
    keys: OnceLock<PacketKeySet>,
}

impl NextKeys {
    fn after(secrets: Secrets) -> Self {
        Self {
            secrets: Mutex::new(secrets),
            keys: OnceLock::new(),
        }
    }

    fn keys(&self) -> &PacketKeySet {
        self.keys.get_or_init(|| {
            let mut secrets = self.secrets.lock().unwrap_or_else(PoisonError::into_inner);
            secrets.next_packet_keys()
        })
    }

    /// The secrets of the phase behind this one.
    fn behind(&self) -> Secrets {
        self.keys();
        self.secrets
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

struct NextKey {
    of: Arc<NextKeys>,
    local: bool,
}

impl NextKey {
    fn key(&self) -> &dyn PacketKey {
        let keys = self.of.keys();
        if self.local { &keys.local } else { &keys.remote }
    }
}

impl PacketKey for NextKey {
    fn encrypt(&self, packet: u64, buf: &mut [u8], header_len: usize) {
        self.key().encrypt(packet, buf, header_len);
    }

    fn decrypt(&self, packet: u64, header: &[u8], payload: &mut BytesMut) -> Result<(), CryptoError> {
        self.key().decrypt(packet, header, payload)
    }

    fn tag_len(&self) -> usize {
        self.key().tag_len()
    }

    fn confidentiality_limit(&self) -> u64 {
        self.key().confidentiality_limit()
    }

    fn integrity_limit(&self) -> u64 {
        self.key().integrity_limit()
    }
}
