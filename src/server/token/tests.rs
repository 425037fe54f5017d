use std::os::unix::fs::PermissionsExt as _;

use proptest::prelude::*;

use super::*;
use crate::server::config::{JwtConfig, JwtKey, Secret};

const NOW: u64 = 1_800_000_000;
const LEEWAY: u64 = 30;
const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

fn pair() -> (String, String) {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
    (key.serialize_pem(), key.public_key_pem())
}

fn ed() -> (Signer, Verifier) {
    let (private, public) = pair();
    let signer = Signer::from_private_pem(None, private.as_bytes()).expect("private");
    (
        signer,
        Verifier::new(vec![
            VerifyingKey::from_public_pem(None, public.as_bytes()).expect("public"),
        ]),
    )
}

fn hs() -> (Signer, Verifier) {
    let signer = Signer::from_secret(None, SECRET).expect("secret");
    (
        signer,
        Verifier::new(vec![VerifyingKey::from_secret(None, SECRET).expect("secret")]),
    )
}

fn claims() -> Claims {
    Claims {
        sub: Some("alice".to_owned()),
        aud: Some(Audience::One(AUDIENCE.to_owned())),
        exp: Some(NOW + 3_600),
        iat: Some(NOW),
        nbf: None,
        iss: None,
        jti: None,
    }
}

/// Verifies these claims, signed, at `now`.
fn judge(claims: &Claims, now: u64) -> Result<Verified, TokenError> {
    let (signer, verifier) = hs();
    verifier.verify(&signer.sign(claims).expect("signed"), now)
}

#[test]
fn each_algorithm_signs_and_verifies() {
    for (signer, verifier) in [ed(), hs()] {
        let token = signer
            .mint("alice", NOW, Duration::from_secs(60))
            .expect("minted");
        assert!(token.len() < 400, "{} bytes", token.len());
        let verified = verifier.verify(&token, NOW).expect("good");
        assert_eq!(
            (verified.user.as_str(), verified.issued_at, verified.expires_at),
            ("alice", NOW, NOW + 60)
        );
        assert_eq!(verified.token_id.expect("jti").len(), 32);
    }
}

#[test]
fn a_token_expires_at_its_second() {
    let judge_at = |now| judge(&claims(), now);
    let exp = NOW + 3_600;
    assert!(judge_at(exp - 1).is_ok());
    assert!(judge_at(exp + LEEWAY - 1).is_ok());
    assert_eq!(judge_at(exp + LEEWAY), Err(TokenError::Expired { by: LEEWAY }));
    assert_eq!(
        judge_at(exp + LEEWAY + 1),
        Err(TokenError::Expired { by: LEEWAY + 1 })
    );
    assert!(matches!(judge_at(u64::MAX), Err(TokenError::Expired { .. })));
}

#[test]
fn a_token_starts_at_its_second() {
    assert!(judge(&claims(), NOW - LEEWAY).is_ok());
    assert_eq!(
        judge(&claims(), NOW - LEEWAY - 1),
        Err(TokenError::NotYetValid {
            in_seconds: LEEWAY + 1
        })
    );
    let later = Claims {
        nbf: Some(NOW + 100),
        ..claims()
    };
    assert!(judge(&later, NOW + 100 - LEEWAY).is_ok());
    assert_eq!(
        judge(&later, NOW + 99 - LEEWAY),
        Err(TokenError::NotYetValid {
            in_seconds: LEEWAY + 1
        })
    );
}

#[test]
fn a_life_is_at_most_a_day() {
    let living = |seconds| {
        judge(
            &Claims {
                exp: Some(NOW + seconds),
                ..claims()
            },
            NOW,
        )
    };
    assert!(living(86_400).is_ok());
    assert_eq!(living(86_401), Err(TokenError::BadLife { max: 86_400 }));
    assert_eq!(
        judge(
            &Claims {
                exp: Some(NOW - 1),
                ..claims()
            },
            NOW
        ),
        Err(TokenError::BadLife { max: 86_400 })
    );
    assert_eq!(
        judge(
            &Claims {
                exp: Some(u64::MAX),
                ..claims()
            },
            NOW
        ),
        Err(TokenError::BadLife { max: 86_400 })
    );
}

#[test]
fn claims_that_must_be_there_are_asked_for() {
    for (without, name) in [
        (
            Claims {
                exp: None,
                ..claims()
            },
            "exp",
        ),
        (
            Claims {
                iat: None,
                ..claims()
            },
            "iat",
        ),
        (
            Claims {
                aud: None,
                ..claims()
            },
            "aud",
        ),
        (
            Claims {
                sub: None,
                ..claims()
            },
            "sub",
        ),
    ] {
        assert_eq!(judge(&without, NOW), Err(TokenError::MissingClaim(name)));
    }
}

#[test]
fn audience_and_issuer_must_match() {
    let to = |audience| {
        judge(
            &Claims {
                aud: Some(audience),
                ..claims()
            },
            NOW,
        )
    };
    let list = |names: &[&str]| Audience::Several(names.iter().map(|name| name.to_string()).collect());
    assert_eq!(
        to(Audience::One("irish".to_owned())),
        Err(TokenError::WrongAudience)
    );
    assert_eq!(to(list(&["other"])), Err(TokenError::WrongAudience));
    assert_eq!(to(list(&[])), Err(TokenError::WrongAudience));
    assert!(to(list(&["other", "iris"])).is_ok());

    let (signer, verifier) = hs();
    let verifier = Verifier {
        issuer: Some("us".to_owned()),
        ..verifier
    };
    let by = |iss: Option<&str>| {
        let claims = Claims {
            iss: iss.map(str::to_owned),
            ..claims()
        };
        verifier
            .verify(&signer.sign(&claims).expect("signed"), NOW)
            .map(|verified| verified.user.to_string())
    };
    assert_eq!(by(Some("us")), Ok("alice".to_owned()));
    assert_eq!(by(Some("them")), Err(TokenError::WrongIssuer));
    assert_eq!(by(None), Err(TokenError::MissingClaim("iss")));
}

#[test]
fn a_subject_is_a_user_id() {
    let named = |sub: String| {
        judge(
            &Claims {
                sub: Some(sub),
                ..claims()
            },
            NOW,
        )
        .map(|verified| verified.user.to_string())
    };
    assert!(named("ü".repeat(127) + "x").is_ok(), "255 bytes");
    for bad in ["", "a\nb", "a\0", "\u{7f}", "a\u{85}b", &"ü".repeat(128)] {
        assert_eq!(named(bad.to_owned()), Err(TokenError::BadSubject), "{bad:?}");
        assert!(
            matches!(hs().0.mint(bad, NOW, MAX_LIFE), Err(MintError::User(_))),
            "{bad:?}"
        );
    }
}

#[test]
fn the_key_decides_the_algorithm() {
    // The classic attack: sign with HMAC, the public key's text or bytes as the secret.
    let (private, public) = pair();
    let verifier = Verifier::new(vec![
        VerifyingKey::from_public_pem(None, public.as_bytes()).expect("public"),
    ]);
    let body = public
        .lines()
        .filter(|line| !line.starts_with("---"))
        .collect::<String>();
    for secret in [public.as_bytes(), body.as_bytes()] {
        let forged = Signer::from_secret(None, secret)
            .expect("long enough")
            .sign(&claims())
            .expect("signed");
        assert_eq!(verifier.verify(&forged, NOW), Err(TokenError::UnknownKey));
    }
    // With both kinds of key configured, a token can still only be verified by a key of its own algorithm.
    let both = Verifier::new(vec![
        VerifyingKey::from_public_pem(None, public.as_bytes()).expect("public"),
        VerifyingKey::from_secret(None, SECRET).expect("secret"),
    ]);
    let forged = Signer::from_secret(None, public.as_bytes())
        .expect("long enough")
        .sign(&claims())
        .expect("signed");
    assert_eq!(both.verify(&forged, NOW), Err(TokenError::BadSignature));
    let good = Signer::from_private_pem(None, private.as_bytes())
        .expect("private")
        .sign(&claims())
        .expect("signed");
    assert!(both.verify(&good, NOW).is_ok());
    assert!(both.verify(&hs().0.sign(&claims()).expect("signed"), NOW).is_ok());
    // `none`, and algorithms that are not configured.
    let payload = good.split('.').nth(1).expect("payload");
    for header in [
        "eyJhbGciOiJub25lIn0",
        "eyJhbGciOiJSUzI1NiJ9",
        "eyJhbGciOiJIUzM4NCJ9",
    ] {
        for signature in ["", "AAAA"] {
            let error = both
                .verify(&format!("{header}.{payload}.{signature}"), NOW)
                .expect_err(header);
            assert!(
                matches!(error, TokenError::Malformed(_) | TokenError::UnknownKey),
                "{error}"
            );
        }
    }
}

#[test]
fn key_ids_choose_among_keys() {
    let old = b"old-old-old-old-old-old-old-old-old";
    let verifier = Verifier::new(vec![
        VerifyingKey::from_secret(Some("old".to_owned()), old).expect("secret"),
        VerifyingKey::from_secret(Some("new".to_owned()), SECRET).expect("secret"),
    ]);
    let by = |kid: Option<&str>, secret: &[u8]| {
        let signer = Signer::from_secret(kid.map(str::to_owned), secret).expect("secret");
        verifier
            .verify(&signer.sign(&claims()).expect("signed"), NOW)
            .map(|_| ())
    };
    assert_eq!(by(Some("new"), SECRET), Ok(()));
    assert_eq!(by(Some("old"), old), Ok(()));
    assert_eq!(by(None, SECRET), Ok(()));
    assert_eq!(by(Some("old"), SECRET), Err(TokenError::BadSignature));
    assert_eq!(by(Some("other"), SECRET), Err(TokenError::UnknownKey));
}

#[test]
fn critical_extensions_are_refused() {
    let (signer, verifier) = hs();
    let mut header = Header::new(jsonwebtoken::Algorithm::HS256);
    header.crit = Some(vec!["b64".to_owned()]);
    let token = jsonwebtoken::encode(&header, &claims(), &signer.key).expect("signed");
    assert!(matches!(
        verifier.verify(&token, NOW),
        Err(TokenError::Malformed(_))
    ));
}

#[test]
fn a_token_has_at_most_four_kilobytes() {
    let (signer, verifier) = hs();
    let sized = |bytes: usize| {
        signer
            .sign(&Claims {
                jti: Some("x".repeat(bytes)),
                ..claims()
            })
            .expect("signed")
    };
    let mut bytes = 2_900;
    while sized(bytes + 1).len() <= MAX_TOKEN_BYTES {
        bytes += 1;
    }
    assert!(verifier.verify(&sized(bytes), NOW).is_ok());
    let long = sized(bytes + 1);
    assert_eq!(verifier.verify(&long, NOW), Err(TokenError::TooLong(long.len())));
}

#[test]
fn keys_of_the_wrong_kind_are_refused() {
    let (private, public) = pair();
    assert!(matches!(
        VerifyingKey::from_public_pem(None, private.as_bytes()),
        Err(KeyError::NoPublicKey)
    ));
    assert!(matches!(
        Signer::from_private_pem(None, public.as_bytes()),
        Err(KeyError::NoPrivateKey)
    ));
    let p256 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("a key");
    assert!(VerifyingKey::from_public_pem(None, p256.public_key_pem().as_bytes()).is_err());
    assert!(Signer::from_private_pem(None, p256.serialize_pem().as_bytes()).is_err());
    assert!(matches!(
        VerifyingKey::from_secret(None, &SECRET[1..]),
        Err(KeyError::ShortSecret(31))
    ));
    // PKCS #8 without the public key, as OpenSSL writes it.
    let openssl = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n";
    assert!(Signer::from_private_pem(None, openssl.as_bytes()).is_ok());
}

#[test]
fn key_files_are_made_once_and_private() {
    let folder = tempfile::tempdir().expect("a folder");
    let files = KeyFiles::in_data(folder.path());
    files.create_or_keep().expect("made");
    let mode = std::fs::metadata(&files.private)
        .expect("there")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let private = std::fs::read(&files.private).expect("there");
    std::fs::remove_file(&files.public).expect("removed");
    files.create_or_keep().expect("kept");
    assert_eq!(std::fs::read(&files.private).expect("there"), private);
    assert_eq!(
        std::fs::read_dir(folder.path().join("keys"))
            .expect("there")
            .count(),
        2,
        "drafts are left behind"
    );

    let config = JwtConfig {
        keys: vec![JwtKey::ed25519(files.public.clone())],
        ..JwtConfig::default()
    };
    let token = Signer::from_file(&files.private, None)
        .expect("private")
        .mint("bob", NOW, MAX_LIFE)
        .expect("minted");
    assert_eq!(
        Verifier::from_config(&config)
            .expect("public")
            .verify(&token, NOW)
            .expect("good")
            .user
            .as_str(),
        "bob"
    );
    std::fs::write(&files.private, "nonsense").expect("write");
    assert!(
        matches!(files.create_or_keep(), Err(KeyError::Content { .. })),
        "a damaged key is not replaced"
    );
}

#[test]
fn secrets_come_from_files_or_the_configuration() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("secret");
    std::fs::write(&file, [SECRET, b"\n"].concat()).expect("write");
    let token = Signer::from_file(&file, None)
        .expect("secret")
        .mint("bob", NOW, MAX_LIFE)
        .expect("minted");
    let text = String::from_utf8(SECRET.to_vec()).expect("ASCII");
    for (secret_file, secret) in [(Some(file), None), (None, Some(Secret::new(text)))] {
        let keys = vec![JwtKey {
            algorithm: Algorithm::HS256,
            kid: None,
            public_key: None,
            secret_file,
            secret,
        }];
        let verifier = Verifier::from_config(&JwtConfig {
            keys,
            ..JwtConfig::default()
        })
        .expect("secret");
        assert!(verifier.verify(&token, NOW).is_ok());
    }
    let missing = JwtKey::ed25519("/nonexistent/key".into());
    let error = VerifyingKey::from_config(&missing)
        .expect_err("missing")
        .to_string();
    assert!(error.contains("/nonexistent/key"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_text_is_refused_without_a_panic(text in ".{0,200}", parts in prop::array::uniform3("[A-Za-z0-9_-]{0,60}")) {
        let (_, verifier) = hs();
        prop_assert!(verifier.verify(&text, NOW).is_err());
        prop_assert!(verifier.verify(&parts.join("."), NOW).is_err());
    }

    #[test]
    fn a_changed_token_is_refused(at: prop::sample::Index, to in "[A-Za-z0-9_.-]") {
        let (signer, verifier) = hs();
        let token = signer.sign(&claims()).expect("signed");
        let at = at.index(token.len());
        prop_assume!(token[at..=at] != to);
        let mut changed = token.clone();
        changed.replace_range(at..=at, &to);
        prop_assert!(verifier.verify(&changed, NOW).is_err(), "{changed}");
    }
}
