//! The tokens that clients present: JSON Web Tokens (RFC 7519), EdDSA (Ed25519) or HS256.
//!
//! The key decides the algorithm: a token that names another one is refused before any signature is computed, so a public key
//! can never be used as an HMAC secret. The time is an input. [`Verifier`] is for edges, [`Signer`] for `iris token`,
//! [`KeyFiles`] for the keys that `iris dev` makes.
//!
//! | claim | |
//! |---|---|
//! | `sub` | required: the user id, 1 to 255 bytes of UTF-8 without control characters |
//! | `aud` | required: the audience, as text or in a list |
//! | `exp`, `iat` | required: whole seconds since 1970; `exp` at most 24 h after `iat` |
//! | `nbf`, `iss`, `jti` | optional; `iss` is required where the configuration names an issuer |

mod keys;
mod provider;

use std::time::Duration;

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{DecodingKey, EncodingKey, Header, Validation};
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};

use crate::core::ids::{IdError, UserId};
use crate::core::wire::MAX_TOKEN;

pub use keys::{KeyError, KeyFiles};

/// The audience of tokens for Iris.
pub const AUDIENCE: &str = "iris";

/// The longest life of a token. A longer one would outlive the memory of a revocation.
pub const MAX_LIFE: Duration = Duration::from_secs(86_400);

/// The most that the clocks of issuer and node may differ.
pub const MAX_LEEWAY: Duration = Duration::from_secs(300);

/// Bytes of a token. Checked before anything is decoded; a usual one has 300.
pub const MAX_TOKEN_BYTES: usize = MAX_TOKEN;

/// Bytes of an HS256 secret at least: as many as the hash has (RFC 7518, 3.2).
pub const MIN_SECRET_BYTES: usize = 32;

/// What a key signs with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Algorithm {
    /// Ed25519.
    EdDSA,
    /// HMAC with SHA-256.
    HS256,
}

/// Why a token is refused. None of them repeats the token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Beyond [`MAX_TOKEN_BYTES`].
    #[error("the token has {0} bytes, expected at most {MAX_TOKEN_BYTES}")]
    TooLong(usize),
    /// Not a token: parts, base64, JSON, types of claims, an unknown algorithm, a critical extension.
    #[error("this is not a token that Iris understands: {0}")]
    Malformed(&'static str),
    /// No configured key has the key id and the algorithm that the token names.
    #[error("no key for this token: its key id and algorithm do not match a configured key")]
    UnknownKey,
    /// No matching key made this signature.
    #[error("the token's signature is not by a configured key")]
    BadSignature,
    /// A claim that must be there is not.
    #[error("the token lacks the claim {0:?}")]
    MissingClaim(&'static str),
    /// `exp` passed this many seconds ago.
    #[error("the token expired {by} s ago; get a new one")]
    Expired {
        /// Seconds since `exp`.
        by: u64,
    },
    /// `nbf` or `iat` is this many seconds ahead of this node's clock.
    #[error("the token is valid in {in_seconds} s; check the clocks of issuer and node")]
    NotYetValid {
        /// Seconds until then.
        in_seconds: u64,
    },
    /// `exp` is too long after `iat`, or before it.
    #[error("the token's life from `iat` to `exp` is longer than {max} s, or negative; issue shorter ones")]
    BadLife {
        /// The longest life allowed, in seconds.
        max: u64,
    },
    /// `aud` is something else.
    #[error("the token is for another audience")]
    WrongAudience,
    /// `iss` is something else.
    #[error("the token is by another issuer")]
    WrongIssuer,
    /// `sub` cannot be a user id.
    #[error("the token's `sub` is no user id: expected 1 to 255 bytes of UTF-8 without control characters")]
    BadSubject,
}

/// What a good token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// The user, from `sub`.
    pub user: UserId,
    /// `iat`, seconds since 1970.
    pub issued_at: u64,
    /// `exp`, seconds since 1970. Checked when a session begins; the session may outlast it.
    pub expires_at: u64,
    /// `jti`.
    pub token_id: Option<String>,
}

/// The claims of a token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Claims {
    /// The user id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sub: Option<String>,
    /// Audiences.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aud: Option<Audience>,
    /// End of its life, seconds since 1970; not valid from then on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exp: Option<u64>,
    /// When it was issued, seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iat: Option<u64>,
    /// Start of its life, seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nbf: Option<u64>,
    /// Issuer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iss: Option<String>,
    /// The token's own id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jti: Option<String>,
}

impl Claims {
    /// For `user`, valid from `now_unix_secs` for `life`, to the audience [`AUDIENCE`], with a random `jti`.
    pub fn new(user: &str, now_unix_secs: u64, life: Duration) -> Result<Self, MintError> {
        UserId::new(user)?;
        if life < Duration::from_secs(1) || life > MAX_LIFE {
            return Err(MintError::Life(life.as_secs()));
        }
        let mut id = [0u8; 16];
        SystemRandom::new().fill(&mut id).map_err(|_| MintError::Random)?;
        Ok(Self {
            sub: Some(user.to_owned()),
            aud: Some(Audience::One(AUDIENCE.to_owned())),
            exp: Some(now_unix_secs.saturating_add(life.as_secs())),
            iat: Some(now_unix_secs),
            nbf: None,
            iss: None,
            jti: Some(format!("{:032x}", u128::from_be_bytes(id))),
        })
    }
}

/// `aud`: one text, or a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Audience {
    /// `"aud": "iris"`.
    One(String),
    /// `"aud": ["iris", "other"]`.
    Several(Vec<String>),
}

/// A key that verifies, with the one algorithm that it may be used for.
#[derive(Debug, Clone)]
pub struct VerifyingKey {
    kid: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
}

/// Verifies tokens. Cheap to share; no state, no clock.
#[derive(Debug, Clone)]
pub struct Verifier {
    keys: Vec<VerifyingKey>,
    audience: String,
    issuer: Option<String>,
    max_life: Duration,
    leeway: Duration,
}

impl Verifier {
    /// A verifier with these keys, the audience [`AUDIENCE`], any issuer, [`MAX_LIFE`] and 30 s of leeway.
    pub fn new(keys: Vec<VerifyingKey>) -> Self {
        Self {
            keys,
            audience: AUDIENCE.to_owned(),
            issuer: None,
            max_life: MAX_LIFE,
            leeway: Duration::from_secs(30),
        }
    }

    /// The verifier of a configuration; reads its key files.
    pub fn from_config(config: &super::config::JwtConfig) -> Result<Self, KeyError> {
        let keys = config.keys.iter().map(VerifyingKey::from_config);
        Ok(Self::with_keys(keys.collect::<Result<_, _>>()?, config))
    }

    /// The verifier of a configuration whose keys were read.
    pub fn with_keys(keys: Vec<VerifyingKey>, config: &super::config::JwtConfig) -> Self {
        Self {
            keys,
            audience: config.audience.clone(),
            issuer: config.issuer.clone(),
            max_life: config.max_life,
            leeway: config.leeway,
        }
    }

    /// What `token` says, if it is good at `now_unix_secs`.
    pub fn verify(&self, token: &str, now_unix_secs: u64) -> Result<Verified, TokenError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::TooLong(token.len()));
        }
        let header = jsonwebtoken::decode_header(token).map_err(|error| malformed(error.kind()))?;
        if header.crit.is_some() {
            return Err(TokenError::Malformed("it has a critical extension"));
        }
        let claims = self.signed_claims(token, &header)?;
        self.check(claims, now_unix_secs)
    }

    /// The claims, once a key with the token's key id and algorithm verified the signature over them.
    fn signed_claims(&self, token: &str, header: &Header) -> Result<Claims, TokenError> {
        let mut refused = TokenError::UnknownKey;
        for key in self.keys.iter().filter(|key| key.may_verify(header)) {
            // Time, audience and issuer are checked below, by the given time and with errors of our own.
            let mut validation = Validation::new(key.algorithm.into());
            validation.required_spec_claims.clear();
            validation.validate_exp = false;
            validation.validate_nbf = false;
            validation.validate_aud = false;
            match jsonwebtoken::decode::<Claims>(token, &key.key, &validation) {
                Ok(data) => return Ok(data.claims),
                Err(error) if matches!(error.kind(), ErrorKind::InvalidSignature) => {
                    refused = TokenError::BadSignature
                }
                Err(error) => return Err(malformed(error.kind())),
            }
        }
        Err(refused)
    }

    fn check(&self, claims: Claims, now: u64) -> Result<Verified, TokenError> {
        let required = |value: Option<u64>, name| value.ok_or(TokenError::MissingClaim(name));
        let (expires_at, issued_at) = (required(claims.exp, "exp")?, required(claims.iat, "iat")?);
        let (leeway, max) = (self.leeway.as_secs(), self.max_life.as_secs());
        if now >= expires_at.saturating_add(leeway) {
            return Err(TokenError::Expired { by: now - expires_at });
        }
        let starts = claims.nbf.map_or(issued_at, |nbf| nbf.max(issued_at));
        if starts > now.saturating_add(leeway) {
            return Err(TokenError::NotYetValid {
                in_seconds: starts - now,
            });
        }
        if expires_at.checked_sub(issued_at).is_none_or(|life| life > max) {
            return Err(TokenError::BadLife { max });
        }
        match &claims.aud {
            None => return Err(TokenError::MissingClaim("aud")),
            Some(Audience::One(audience)) if *audience == self.audience => {}
            Some(Audience::Several(audiences)) if audiences.contains(&self.audience) => {}
            Some(_) => return Err(TokenError::WrongAudience),
        }
        match (&self.issuer, &claims.iss) {
            (None, _) => {}
            (Some(_), None) => return Err(TokenError::MissingClaim("iss")),
            (Some(expected), Some(found)) if expected == found => {}
            (Some(_), Some(_)) => return Err(TokenError::WrongIssuer),
        }
        let sub = claims.sub.ok_or(TokenError::MissingClaim("sub"))?;
        let user = UserId::new(&sub).map_err(|_| TokenError::BadSubject)?;
        Ok(Verified {
            user,
            issued_at,
            expires_at,
            token_id: claims.jti,
        })
    }
}

impl VerifyingKey {
    /// An HS256 secret of at least [`MIN_SECRET_BYTES`].
    pub fn from_secret(kid: Option<String>, secret: &[u8]) -> Result<Self, KeyError> {
        provider::install();
        if secret.len() < MIN_SECRET_BYTES {
            return Err(KeyError::ShortSecret(secret.len()));
        }
        Ok(Self {
            kid,
            algorithm: Algorithm::HS256,
            key: DecodingKey::from_secret(secret),
        })
    }

    /// An Ed25519 public key in PEM (`BEGIN PUBLIC KEY`).
    pub fn from_public_pem(kid: Option<String>, pem: &[u8]) -> Result<Self, KeyError> {
        provider::install();
        let expected = KeyError::NoPublicKey;
        // A certificate would parse too, as something else than its key.
        if !pem.windows(16).any(|part| part == b"BEGIN PUBLIC KEY") {
            return Err(expected);
        }
        let key = DecodingKey::from_ed_pem(pem).map_err(|_| expected)?;
        match key.try_get_as_bytes() {
            Ok(bytes) if bytes.len() == 32 => Ok(Self {
                kid,
                algorithm: Algorithm::EdDSA,
                key,
            }),
            _ => Err(KeyError::NoPublicKey),
        }
    }

    /// The algorithm that this key is for.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    fn may_verify(&self, header: &Header) -> bool {
        let algorithm: jsonwebtoken::Algorithm = self.algorithm.into();
        let same_id = match (&self.kid, &header.kid) {
            (Some(own), Some(named)) => own == named,
            _ => true,
        };
        same_id && algorithm == header.alg
    }
}

/// Signs tokens.
#[derive(Debug, Clone)]
pub struct Signer {
    kid: Option<String>,
    algorithm: Algorithm,
    key: EncodingKey,
}

impl Signer {
    /// An HS256 secret of at least [`MIN_SECRET_BYTES`].
    pub fn from_secret(kid: Option<String>, secret: &[u8]) -> Result<Self, KeyError> {
        provider::install();
        if secret.len() < MIN_SECRET_BYTES {
            return Err(KeyError::ShortSecret(secret.len()));
        }
        Ok(Self {
            kid,
            algorithm: Algorithm::HS256,
            key: EncodingKey::from_secret(secret),
        })
    }

    /// An Ed25519 private key in PEM (PKCS #8, `BEGIN PRIVATE KEY`).
    pub fn from_private_pem(kid: Option<String>, pem: &[u8]) -> Result<Self, KeyError> {
        provider::install();
        let key = EncodingKey::from_ed_pem(pem).map_err(|_| KeyError::NoPrivateKey)?;
        let signer = Self {
            kid,
            algorithm: Algorithm::EdDSA,
            key,
        };
        // jsonwebtoken reads the key itself only when it signs.
        jsonwebtoken::crypto::sign(b"", &signer.key, signer.algorithm.into())
            .map_err(|_| KeyError::NoPrivateKey)?;
        Ok(signer)
    }

    /// A token for `user`, valid from `now_unix_secs` for `life`, as [`Claims::new`] makes it.
    pub fn mint(&self, user: &str, now_unix_secs: u64, life: Duration) -> Result<String, MintError> {
        self.sign(&Claims::new(user, now_unix_secs, life)?)
    }

    /// A token with these claims, whatever they are.
    pub fn sign(&self, claims: &Claims) -> Result<String, MintError> {
        let mut header = Header::new(self.algorithm.into());
        header.kid.clone_from(&self.kid);
        jsonwebtoken::encode(&header, claims, &self.key).map_err(|error| MintError::Sign(error.to_string()))
    }
}

/// Why no token was made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MintError {
    /// The user id cannot be one.
    #[error(transparent)]
    User(#[from] IdError),
    /// The life is out of range.
    #[error("a life of {0} s, expected 1 s to 24 h")]
    Life(u64),
    /// The system gives no random numbers.
    #[error("the system gives no random numbers")]
    Random,
    /// The key does not sign.
    #[error("the key does not sign: {0}")]
    Sign(String),
}

fn malformed(kind: &ErrorKind) -> TokenError {
    TokenError::Malformed(match kind {
        ErrorKind::InvalidToken => "expected three parts with dots between them",
        ErrorKind::Base64(_) => "a part is not base64url without padding",
        ErrorKind::Json(_) => "the header or the claims are not the JSON that is expected",
        ErrorKind::Utf8(_) => "a part is not UTF-8",
        _ => "its header or claims cannot be used",
    })
}

impl From<Algorithm> for jsonwebtoken::Algorithm {
    fn from(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::EdDSA => jsonwebtoken::Algorithm::EdDSA,
            Algorithm::HS256 => jsonwebtoken::Algorithm::HS256,
        }
    }
}

#[cfg(test)]
mod tests;
