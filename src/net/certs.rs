//! The cluster's own certificate authority, and certificates from files.
//!
//! One CA signs all nodes of a cluster. A node's certificate carries two names: [`PEER_NAME`], which all nodes
//! share and which a dialler can check before it knows whom it will meet, and the node's own
//! (`<node>.<region>.node.iris.internal`), against which the name claimed after the handshake is checked. The
//! client-facing certificate is another one, without the client role, so that it can never pass for a node.
//! Keys are ECDSA P-256: TLS stacks without Ed25519 are common among clients.

use std::{
    fs,
    io::Write,
    net::IpAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, date_time_ymd,
};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime, pem::PemObject},
    sign::CertifiedKey,
};

/// The name that every node's certificate carries.
pub const PEER_NAME: &str = "peer.iris.internal";
/// The name in the certificate of an operator: its role.
pub const OPERATOR_NAME: &str = "operator.iris.internal";
/// File of the CA's certificate inside the folder given to [`ClusterCa::save`].
pub const CA_CERT_FILE: &str = "ca.pem";
/// File of the CA's key inside the folder given to [`ClusterCa::save`], mode 0600.
pub const CA_KEY_FILE: &str = "ca.key";

/// Longest name of a region or node: it is one label of a DNS name, and part of many keys.
const MAX_NAME: usize = 32;
/// A PEM file larger than this is not a certificate or key of ours: refused before it is read.
const MAX_PEM_FILE: u64 = 1 << 20;
const DAY: Duration = Duration::from_secs(86_400);
const CA_VALIDITY: Duration = Duration::from_secs(10 * 365 * 86_400);
const LEAF_VALIDITY: Duration = Duration::from_secs(5 * 365 * 86_400);
/// Clocks of nodes differ: a certificate is valid from a day before it was made.
const BACKDATE: Duration = DAY;
const CA_COMMON_NAME: &str = "Iris cluster CA";

/// Why a certificate or key could not be made, read, written or used.
#[derive(Debug, thiserror::Error)]
pub enum CertError {
    /// A file could not be read.
    #[error("cannot read {}: {source}; expected a PEM file", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file or folder could not be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file holds no usable PEM section of the expected kind.
    #[error("{}: {problem}; expected {expected}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
        /// What should be there.
        expected: &'static str,
    },
    /// A certificate and a key do not belong together.
    #[error("{} does not belong to {}: {problem}; use files that were issued together", key.display(), cert.display())]
    Mismatch {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What the check said.
        problem: String,
    },
    /// A region, node or host name cannot stand in a certificate.
    #[error("bad {what} name {name:?}: expected {expected}")]
    BadName {
        /// "region", "node", "operator" or "host".
        what: &'static str,
        /// The name as given.
        name: String,
        /// The rule it breaks.
        expected: &'static str,
    },
    /// Generation or signing failed.
    #[error("cannot make a certificate: {0}")]
    Generate(#[from] rcgen::Error),
    /// rustls refused the certificate, key or configuration.
    #[error("TLS configuration refused: {0}")]
    Tls(#[from] rustls::Error),
}

impl CertError {
    /// The file at fault, where it is one; of a pair that does not belong together, the key's.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::Read { path, .. } | Self::Write { path, .. } | Self::Parse { path, .. } => Some(path),
            Self::Mismatch { key, .. } => Some(key),
            Self::BadName { .. } | Self::Generate(_) | Self::Tls(_) => None,
        }
    }
}

/// The DNS name of one node, as in its certificate.
///
/// # Errors
/// [`CertError::BadName`] when a name is not `[a-z0-9-]{1,32}` or has a hyphen at an end.
pub fn node_dns_name(region: &str, node: &str) -> Result<String, CertError> {
    check_name("region", region)?;
    check_name("node", node)?;
    Ok(format!("{node}.{region}.node.iris.internal"))
}

/// The DNS name under which a node serves clients.
///
/// # Errors
/// As [`node_dns_name`].
pub fn server_dns_name(region: &str, node: &str) -> Result<String, CertError> {
    check_name("region", region)?;
    check_name("node", node)?;
    Ok(format!("{node}.{region}.iris.internal"))
}

/// Whether `cert` is valid for the DNS name `name`, as webpki judges it.
pub fn cert_has_name(cert: &CertificateDer<'_>, name: &str) -> bool {
    let Ok(server_name) = ServerName::try_from(name) else {
        return false;
    };
    let Ok(parsed) = rustls::server::ParsedCertificate::try_from(cert) else {
        return false;
    };
    rustls::client::verify_server_name(&parsed, &server_name).is_ok()
}

/// A certificate chain with its private key.
#[derive(Debug)]
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Self {
            chain: self.chain.clone(),
            key: self.key.clone_key(),
        }
    }
}

impl Identity {
    /// Reads a chain and its key from two PEM files and checks that they belong together.
    ///
    /// # Errors
    /// [`CertError`] naming the file at fault.
    pub fn load(cert: &Path, key: &Path) -> Result<Self, CertError> {
        let chain = read_certs(cert)?;
        let der = PrivateKeyDer::from_pem_slice(&read_file(key)?).map_err(|error| CertError::Parse {
            path: key.into(),
            problem: error.to_string(),
            expected: "one PEM private key (PKCS#8)",
        })?;
        check_pair(&chain, &der).map_err(|problem| CertError::Mismatch {
            cert: cert.into(),
            key: key.into(),
            problem,
        })?;
        Ok(Self { chain, key: der })
    }

    /// Writes `<stem>.pem` and `<stem>.key` (mode 0600) into `folder`, which is made when missing.
    ///
    /// # Errors
    /// [`CertError::Write`].
    pub fn save(&self, folder: &Path, stem: &str) -> Result<(PathBuf, PathBuf), CertError> {
        let cert = folder.join(format!("{stem}.pem"));
        let key = folder.join(format!("{stem}.key"));
        make_folder(folder)?;
        write_secret(&key, &pem("PRIVATE KEY", self.key.secret_der()))?;
        let chain: String = self.chain.iter().map(|der| pem("CERTIFICATE", der)).collect();
        write_file(&cert, &chain, 0o644)?;
        Ok((cert, key))
    }

    /// What names the certificate in logs: the first bytes of its SHA-256, in hexadecimal digits.
    pub fn fingerprint(&self) -> String {
        fingerprint(&self.chain[0])
    }

    /// The chain, the node's own certificate first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// A copy of the private key.
    pub fn key(&self) -> PrivateKeyDer<'static> {
        self.key.clone_key()
    }
}

/// See [`Identity::fingerprint`].
pub fn fingerprint(cert: &CertificateDer<'_>) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, cert);
    digest.as_ref()[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// The certificates that a side trusts.
#[derive(Debug, Clone)]
pub struct Roots(Arc<RootCertStore>);

impl Roots {
    /// Reads all certificates of a PEM file as trust anchors.
    ///
    /// # Errors
    /// [`CertError`] naming the file.
    pub fn load(path: &Path) -> Result<Self, CertError> {
        let mut store = RootCertStore::empty();
        for cert in read_certs(path)? {
            store.add(cert).map_err(|error| CertError::Parse {
                path: path.into(),
                problem: error.to_string(),
                expected: "CA certificates",
            })?;
        }
        Ok(Self(Arc::new(store)))
    }

    /// Trusts exactly the given certificate.
    ///
    /// # Errors
    /// [`CertError::Tls`] when it is not a certificate.
    pub fn only(cert: &CertificateDer<'_>) -> Result<Self, CertError> {
        let mut store = RootCertStore::empty();
        store.add(cert.clone().into_owned())?;
        Ok(Self(Arc::new(store)))
    }

    /// The store for a rustls configuration.
    pub fn store(&self) -> Arc<RootCertStore> {
        self.0.clone()
    }
}

/// The certificate authority of one cluster.
pub struct ClusterCa {
    cert: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for ClusterCa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClusterCa").finish_non_exhaustive()
    }
}

impl ClusterCa {
    /// Makes a new CA, valid for ten years.
    ///
    /// # Errors
    /// [`CertError::Generate`].
    pub fn create() -> Result<Self, CertError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let params = ca_params();
        let cert = params.self_signed(&key)?.der().clone();
        Ok(Self {
            cert,
            issuer: Issuer::new(params, key),
        })
    }

    /// Reads the CA that [`Self::save`] wrote, and checks that its key signs for its certificate.
    ///
    /// # Errors
    /// [`CertError`] naming the file at fault.
    pub fn load(folder: &Path) -> Result<Self, CertError> {
        let cert_path = folder.join(CA_CERT_FILE);
        let key_path = folder.join(CA_KEY_FILE);
        let cert = read_certs(&cert_path)?.swap_remove(0);
        let bytes = read_file(&key_path)?;
        let bad_key = |problem: String| CertError::Parse {
            path: key_path.clone(),
            problem,
            expected: "one PEM ECDSA P-256 key",
        };
        let text = std::str::from_utf8(&bytes).map_err(|error| bad_key(error.to_string()))?;
        let key = KeyPair::from_pem(text).map_err(|error| bad_key(error.to_string()))?;
        let ca = Self {
            cert,
            issuer: Issuer::new(ca_params(), key),
        };
        ca.prove().map_err(|problem| CertError::Mismatch {
            cert: cert_path,
            key: key_path,
            problem,
        })?;
        Ok(ca)
    }

    /// Writes `ca.pem` and `ca.key` (mode 0600) into `folder`, which is made when missing.
    ///
    /// # Errors
    /// [`CertError::Write`].
    pub fn save(&self, folder: &Path) -> Result<(), CertError> {
        make_folder(folder)?;
        write_secret(&folder.join(CA_KEY_FILE), &self.issuer.key().serialize_pem())?;
        write_file(&folder.join(CA_CERT_FILE), &self.cert_pem(), 0o644)
    }

    /// The CA's certificate in PEM form, which everybody may have.
    pub fn cert_pem(&self) -> String {
        pem("CERTIFICATE", &self.cert)
    }

    /// The trust anchors of the cluster: this CA alone.
    pub fn roots(&self) -> Roots {
        Roots::only(&self.cert).expect("the certificate was parsed or made by us")
    }

    /// A node's certificate for connections between nodes: [`PEER_NAME`] and its own name, both roles.
    ///
    /// # Errors
    /// [`CertError::BadName`], [`CertError::Generate`].
    pub fn issue_node(&self, region: &str, node: &str) -> Result<Identity, CertError> {
        let own = node_dns_name(region, node)?;
        self.issue(
            &own,
            &[PEER_NAME.to_owned(), own.clone()],
            &[],
            &[
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ],
        )
    }

    /// A client-facing certificate for the given host names and addresses, the server role alone.
    ///
    /// # Errors
    /// [`CertError::BadName`], also for names under `node.iris.internal` and [`PEER_NAME`], which are for nodes.
    pub fn issue_server(&self, names: &[String], ips: &[IpAddr]) -> Result<Identity, CertError> {
        for name in names {
            if name == PEER_NAME || name == OPERATOR_NAME || name.ends_with(".node.iris.internal") {
                return Err(CertError::BadName {
                    what: "host",
                    name: name.clone(),
                    expected: "a name outside those that nodes use among themselves",
                });
            }
        }
        let common = names.first().map_or("iris server", String::as_str);
        self.issue(common, names, ips, &[ExtendedKeyUsagePurpose::ServerAuth])
    }

    /// An operator's certificate: [`OPERATOR_NAME`], the client role alone. `name` is for people.
    ///
    /// # Errors
    /// [`CertError::BadName`], [`CertError::Generate`].
    pub fn issue_operator(&self, name: &str) -> Result<Identity, CertError> {
        check_name("operator", name)?;
        self.issue(
            name,
            &[OPERATOR_NAME.to_owned()],
            &[],
            &[ExtendedKeyUsagePurpose::ClientAuth],
        )
    }

    fn issue(
        &self,
        common_name: &str,
        names: &[String],
        ips: &[IpAddr],
        usages: &[ExtendedKeyUsagePurpose],
    ) -> Result<Identity, CertError> {
        let mut params = CertificateParams::default();
        for name in names {
            // webpki's reading of a DNS name is the one that counts: a name it refuses could never be verified.
            let bad = || CertError::BadName {
                what: "host",
                name: name.clone(),
                expected: "a DNS name",
            };
            if !matches!(ServerName::try_from(name.as_str()), Ok(ServerName::DnsName(_))) {
                return Err(bad());
            }
            params
                .subject_alt_names
                .push(SanType::DnsName(name.as_str().try_into().map_err(|_| bad())?));
        }
        params
            .subject_alt_names
            .extend(ips.iter().map(|ip| SanType::IpAddress(*ip)));
        params.distinguished_name.remove(DnType::CommonName);
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.extended_key_usages = usages.to_vec();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, LEAF_VALIDITY);
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let cert = params.signed_by(&key, &self.issuer)?;
        Ok(Identity {
            chain: vec![cert.der().clone()],
            key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        })
    }

    /// Issues a certificate and verifies it against our own root: the proof that key and certificate match.
    fn prove(&self) -> Result<(), String> {
        let leaf = self
            .issue_server(&["proof.iris.internal".to_owned()], &[])
            .map_err(|error| error.to_string())?;
        let roots = Roots::only(&self.cert).map_err(|error| error.to_string())?;
        let parsed =
            rustls::server::ParsedCertificate::try_from(&leaf.chain[0]).map_err(|error| error.to_string())?;
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &roots.0,
            &[],
            UnixTime::now(),
            rustls::crypto::ring::default_provider()
                .signature_verification_algorithms
                .all,
        )
        .map_err(|error| error.to_string())
    }
}

fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, CA_COMMON_NAME);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut params, CA_VALIDITY);
    params
}

fn set_validity(params: &mut CertificateParams, validity: Duration) {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let epoch = date_time_ymd(1970, 1, 1);
    params.not_before = epoch + now.saturating_sub(BACKDATE);
    params.not_after = epoch + now + validity;
}

fn check_name(what: &'static str, name: &str) -> Result<(), CertError> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let good = (1..=MAX_NAME).contains(&name.len())
        && name.bytes().all(allowed)
        && !name.starts_with('-')
        && !name.ends_with('-');
    if good {
        return Ok(());
    }
    Err(CertError::BadName {
        what,
        name: name.to_owned(),
        expected: "1 to 32 of a-z, 0-9 and hyphen, with no hyphen first or last",
    })
}

fn check_pair(chain: &[CertificateDer<'static>], key: &PrivateKeyDer<'static>) -> Result<(), String> {
    CertifiedKey::from_der(
        chain.to_vec(),
        key.clone_key(),
        &rustls::crypto::ring::default_provider(),
    )
    .map(drop)
    .map_err(|error| error.to_string())
}

fn read_certs(path: &Path) -> Result<Vec<CertificateDer<'static>>, CertError> {
    let bad = |problem: String| CertError::Parse {
        path: path.into(),
        problem,
        expected: "one or more PEM certificates",
    };
    let certs = CertificateDer::pem_slice_iter(&read_file(path)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| bad(error.to_string()))?;
    if certs.is_empty() {
        return Err(bad("no certificate in it".to_owned()));
    }
    Ok(certs)
}

fn read_file(path: &Path) -> Result<Vec<u8>, CertError> {
    let fail = |source| CertError::Read {
        path: path.into(),
        source,
    };
    let length = fs::metadata(path).map_err(fail)?.len();
    if length > MAX_PEM_FILE {
        return Err(CertError::Parse {
            path: path.into(),
            problem: format!("{length} bytes long"),
            expected: "at most 1 MiB of PEM",
        });
    }
    fs::read(path).map_err(fail)
}

fn make_folder(folder: &Path) -> Result<(), CertError> {
    fs::create_dir_all(folder).map_err(|source| CertError::Write {
        path: folder.into(),
        source,
    })
}

fn write_secret(path: &Path, text: &str) -> Result<(), CertError> {
    write_file(path, text, 0o600)
}

/// Writes a temporary file with the right mode from its first byte, then renames it: no reader meets half a file.
fn write_file(path: &Path, text: &str, mode: u32) -> Result<(), CertError> {
    let fail = |source| CertError::Write {
        path: path.into(),
        source,
    };
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = PathBuf::from(temporary);
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(fail(error)),
        _ => {}
    }
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)
        .map_err(fail)?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(fail)?;
    fs::rename(&temporary, path).map_err(fail)
}

/// PEM by RFC 7468: 64 characters a line.
fn pem(label: &str, der: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut base64 = Vec::with_capacity(der.len().div_ceil(3) * 4);
    for chunk in der.chunks(3) {
        let group = u32::from_be_bytes([
            0,
            chunk[0],
            chunk.get(1).copied().unwrap_or(0),
            chunk.get(2).copied().unwrap_or(0),
        ]);
        for place in 0..4 {
            let digit = ALPHABET[(group >> (18 - 6 * place)) as usize & 63];
            base64.push(if place <= chunk.len() { digit } else { b'=' });
        }
    }
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in base64.chunks(64) {
        text.extend(line.iter().map(|byte| *byte as char));
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_saved_ca_comes_back_and_goes_on_issuing() {
        let folder = tempfile::tempdir().unwrap();
        let made = ClusterCa::create().unwrap();
        made.save(folder.path()).unwrap();
        let mode = fs::metadata(folder.path().join(CA_KEY_FILE))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        let loaded = ClusterCa::load(folder.path()).unwrap();
        assert_eq!(loaded.cert, made.cert);
        let node = loaded.issue_node("us-east", "core-1").unwrap();
        assert!(cert_has_name(&node.chain()[0], PEER_NAME));
        assert!(cert_has_name(
            &node.chain()[0],
            "core-1.us-east.node.iris.internal"
        ));
        assert!(!cert_has_name(
            &node.chain()[0],
            "core-1.eu-west.node.iris.internal"
        ));
        let (cert, key) = node.save(folder.path(), "node").unwrap();
        assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
        let again = Identity::load(&cert, &key).unwrap();
        assert_eq!(again.chain(), node.chain());
        assert!(Roots::load(&folder.path().join(CA_CERT_FILE)).is_ok());
    }

    #[test]
    fn a_key_of_another_ca_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let other = tempfile::tempdir().unwrap();
        ClusterCa::create().unwrap().save(folder.path()).unwrap();
        ClusterCa::create().unwrap().save(other.path()).unwrap();
        fs::copy(other.path().join(CA_KEY_FILE), folder.path().join(CA_KEY_FILE)).unwrap();
        let error = ClusterCa::load(folder.path()).unwrap_err();
        assert!(matches!(&error, CertError::Mismatch { .. }), "{error}");
        assert!(error.to_string().contains("ca.key"), "{error}");
    }

    #[test]
    fn errors_name_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nothing.pem");
        assert!(
            Roots::load(&path)
                .unwrap_err()
                .to_string()
                .contains("nothing.pem")
        );
        fs::write(&path, "hello").unwrap();
        assert!(matches!(Roots::load(&path), Err(CertError::Parse { .. })));
        let ca = ClusterCa::create().unwrap();
        let (cert, _) = ca.issue_node("r", "a").unwrap().save(folder.path(), "a").unwrap();
        let (_, key) = ca.issue_node("r", "b").unwrap().save(folder.path(), "b").unwrap();
        let error = Identity::load(&cert, &key).unwrap_err().to_string();
        assert!(error.contains("a.pem") && error.contains("b.key"), "{error}");
    }

    #[test]
    fn names_are_checked() {
        let ca = ClusterCa::create().unwrap();
        for (region, node) in [
            ("", "a"),
            ("r", ""),
            ("R", "a"),
            ("r", "a.b"),
            ("r", "-a"),
            ("r", &"a".repeat(33)),
        ] {
            assert!(
                matches!(ca.issue_node(region, node), Err(CertError::BadName { .. })),
                "{region}/{node}"
            );
        }
        assert!(ca.issue_node("r", &"a".repeat(32)).is_ok());
        assert!(ca.issue_server(&[PEER_NAME.to_owned()], &[]).is_err());
        assert!(ca.issue_server(&[OPERATOR_NAME.to_owned()], &[]).is_err());
        assert!(
            ca.issue_server(&["a.r.node.iris.internal".to_owned()], &[])
                .is_err()
        );
        assert!(ca.issue_server(&["no spaces".to_owned()], &[]).is_err());
    }
}
