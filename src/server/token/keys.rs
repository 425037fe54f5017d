//! Keys of tokens on disk.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::{Algorithm, Signer, VerifyingKey};
use crate::server::config::JwtKey;

/// Bytes of a key file; a PEM has about 120.
const MAX_KEY_FILE_BYTES: u64 = 64 * 1024;

/// Why a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// A file of it cannot be read or written.
    #[error("key file {}: {source}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file's content is wrong.
    #[error("key file {}: {source}", file.display())]
    Content {
        /// The file.
        file: PathBuf,
        /// Why.
        source: Box<KeyError>,
    },
    /// A secret with fewer bytes than the hash.
    #[error("the secret has {0} bytes, expected at least {min}", min = super::MIN_SECRET_BYTES)]
    ShortSecret(usize),
    /// Not a public key for EdDSA.
    #[error(
        "expected an Ed25519 public key in PEM (BEGIN PUBLIC KEY); `openssl pkey -in KEY -pubout` makes it of the private key"
    )]
    NoPublicKey,
    /// Not a private key for EdDSA.
    #[error(
        "expected an Ed25519 private key in PEM (BEGIN PRIVATE KEY); `openssl genpkey -algorithm ed25519` makes one"
    )]
    NoPrivateKey,
    /// The configuration names nothing that fits the algorithm, or too much.
    #[error("expected `public_key` for EdDSA, and `secret_file` or `secret` for HS256")]
    NoKey,
    /// A key could not be made.
    #[error("cannot make a key: {0}")]
    Generate(String),
}

/// The pair of files with the key that signs development tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyFiles {
    /// Ed25519 private key, PKCS #8 PEM, readable by its owner only.
    pub private: PathBuf,
    /// Its public key, PEM.
    pub public: PathBuf,
}

impl KeyFiles {
    /// Where they are in the data folder of `iris dev`; they need not exist.
    pub fn in_data(data: &Path) -> Self {
        let folder = data.join("keys");
        Self {
            private: folder.join("token.key"),
            public: folder.join("token.pub"),
        }
    }

    /// Makes a key where there is none (private file mode 0600); one that exists is kept, and its public file restored from it.
    pub fn create_or_keep(&self) -> Result<(), KeyError> {
        if let Some(folder) = self.private.parent() {
            fs::create_dir_all(folder).map_err(|source| KeyError::File {
                file: folder.to_owned(),
                source,
            })?;
        }
        let fresh = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519)
            .map_err(|error| KeyError::Generate(error.to_string()))?;
        // Written whole under another name, then linked: no reader sees half a key, and the first of two writers wins.
        let draft = self.private.with_extension(format!("new-{}", std::process::id()));
        let failed = |file: &Path| {
            let file = file.to_owned();
            move |source| KeyError::File { file, source }
        };
        write_private(&draft, fresh.serialize_pem().as_bytes()).map_err(failed(&draft))?;
        let linked = fs::hard_link(&draft, &self.private);
        fs::remove_file(&draft).map_err(failed(&draft))?;
        match linked {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed(&self.private)(error));
            }
            _ => {}
        }
        let wrong = |source| KeyError::Content {
            file: self.private.clone(),
            source: Box::new(source),
        };
        let pem = String::from_utf8(read_key(&self.private)?).map_err(|_| wrong(KeyError::NoPrivateKey))?;
        let kept = rcgen::KeyPair::from_pem(&pem).map_err(|_| wrong(KeyError::NoPrivateKey))?;
        let public = kept.public_key_pem();
        if fs::read(&self.public).is_ok_and(|found| found == public.as_bytes()) {
            return Ok(());
        }
        let draft = self.public.with_extension(format!("new-{}", std::process::id()));
        fs::write(&draft, public).map_err(failed(&draft))?;
        fs::rename(&draft, &self.public).map_err(failed(&self.public))
    }
}

impl Signer {
    /// A private key file: Ed25519 in PEM, or else an HS256 secret.
    pub fn from_file(file: &Path, kid: Option<String>) -> Result<Self, KeyError> {
        let content = read_key(file)?;
        let signer = if content.starts_with(b"-----BEGIN") {
            Self::from_private_pem(kid, &content)
        } else {
            Self::from_secret(kid, without_line_end(&content))
        };
        signer.map_err(|source| KeyError::Content {
            file: file.to_owned(),
            source: Box::new(source),
        })
    }
}

impl VerifyingKey {
    /// The key of a configuration; reads its file.
    pub fn from_config(config: &JwtKey) -> Result<Self, KeyError> {
        let kid = config.kid.clone();
        let (file, made) = match config {
            JwtKey {
                algorithm: Algorithm::EdDSA,
                public_key: Some(file),
                secret_file: None,
                secret: None,
                ..
            } => (file, Self::from_public_pem(kid, &read_key(file)?)),
            JwtKey {
                algorithm: Algorithm::HS256,
                public_key: None,
                secret_file: Some(file),
                secret: None,
                ..
            } => (file, Self::from_secret(kid, without_line_end(&read_key(file)?))),
            JwtKey {
                algorithm: Algorithm::HS256,
                public_key: None,
                secret_file: None,
                secret: Some(secret),
                ..
            } => {
                return Self::from_secret(kid, secret.expose().as_bytes());
            }
            _ => return Err(KeyError::NoKey),
        };
        made.map_err(|source| KeyError::Content {
            file: file.clone(),
            source: Box::new(source),
        })
    }
}

fn read_key(file: &Path) -> Result<Vec<u8>, KeyError> {
    let failed = |source| KeyError::File {
        file: file.to_owned(),
        source,
    };
    let size = fs::metadata(file).map_err(failed)?.len();
    if size > MAX_KEY_FILE_BYTES {
        let text = format!("it has {size} bytes, expected at most {MAX_KEY_FILE_BYTES}");
        return Err(failed(io::Error::new(io::ErrorKind::FileTooLarge, text)));
    }
    fs::read(file).map_err(failed)
}

fn write_private(file: &Path, content: &[u8]) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut to = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)?;
    to.write_all(content)?;
    to.sync_all()
}

/// Editors and `openssl rand -base64` end a file with a line end that is no part of the secret.
fn without_line_end(content: &[u8]) -> &[u8] {
    let content = content.strip_suffix(b"\n").unwrap_or(content);
    content.strip_suffix(b"\r").unwrap_or(content)
}
