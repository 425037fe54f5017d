//! rustls configurations: TLS 1.3 alone, the ring provider given explicitly, no tickets, no early data.

use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::{
    ClientConfig, ServerConfig,
    client::Resumption,
    crypto::CryptoProvider,
    server::{NoServerSessionStorage, WebPkiClientVerifier},
};

use super::certs::{CertError, Identity, Roots};
use super::session::LeanServer;

/// ALPN of clients.
pub const CLIENT_ALPN: &[u8] = b"iris/1";
/// ALPN of connections between nodes.
pub const PEER_ALPN: &[u8] = b"iris-peer/1";
/// ALPN of operators, and of nodes that ask for them, on the address for nodes.
pub const ADMIN_ALPN: &[u8] = b"iris-admin/1";

/// The accepting side, for these protocols; with `client_roots` every client must present a certificate that they signed.
///
/// # Errors
/// [`CertError::Tls`] when key and chain do not fit.
pub fn server_config(
    identity: &Identity,
    client_roots: Option<&Roots>,
    alpn: &[&[u8]],
) -> Result<Arc<QuicServerConfig>, CertError> {
    let config = Arc::new(tls_config(identity, client_roots, alpn)?);
    Ok(Arc::new(
        QuicServerConfig::try_from(config).map_err(no_initial_suite)?,
    ))
}

/// As [`server_config`], for many connections that are idle: see [`session`](super::session).
///
/// # Errors
/// [`CertError::Tls`] when key and chain do not fit.
pub(super) fn lean_server_config(identity: &Identity, alpn: &[&[u8]]) -> Result<Arc<LeanServer>, CertError> {
    let config = Arc::new(tls_config(identity, None, alpn)?);
    let quic = QuicServerConfig::try_from(config.clone()).map_err(no_initial_suite)?;
    Ok(Arc::new(LeanServer::new(config, Arc::new(quic))))
}

fn tls_config(
    identity: &Identity,
    client_roots: Option<&Roots>,
    alpn: &[&[u8]],
) -> Result<ServerConfig, CertError> {
    let builder =
        ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[&rustls::version::TLS13])?;
    let builder = match client_roots {
        None => builder.with_no_client_auth(),
        Some(roots) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.store(), provider())
                .build()
                .map_err(|error| rustls::Error::General(error.to_string()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_single_cert(identity.chain().to_vec(), identity.key())?;
    config.alpn_protocols = alpn.iter().map(|alpn| alpn.to_vec()).collect();
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.max_early_data_size = 0;
    Ok(config)
}

/// The connecting side; `identity` is presented when the server asks for a certificate.
///
/// # Errors
/// [`CertError::Tls`] when key and chain do not fit.
pub fn client_config(
    roots: &Roots,
    identity: Option<&Identity>,
    alpn: &[u8],
) -> Result<Arc<QuicClientConfig>, CertError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots.store());
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => builder.with_client_auth_cert(identity.chain().to_vec(), identity.key())?,
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Ok(Arc::new(
        QuicClientConfig::try_from(config).map_err(no_initial_suite)?,
    ))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn no_initial_suite(error: quinn::crypto::rustls::NoInitialCipherSuite) -> CertError {
    CertError::Tls(rustls::Error::General(error.to_string()))
}
