//! The `iris` binary as its users run it: exit codes, what goes to stdout and what to stderr.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{SystemTime, UNIX_EPOCH};

use iris::server::config::JwtKey;
use iris::server::dev::{DevCluster, Ports};
use iris::server::regions::Regions;
use iris::server::token::{KeyFiles, TokenError, Verifier, VerifyingKey};
use tempfile::TempDir;

const NODE: &str = r#"
[node]
name = "us-east-edge-1"
region = "us-east"

[tls.peer]
ca = "ca.pem"
cert = "node.pem"
key = "node.key"

[tls.client]
cert = "client.pem"
key = "client.key"

[[auth.jwt.keys]]
algorithm = "HS256"
secret = "0123456789abcdef0123456789abcdef"

[limits]
max_body = "32KiB"
"#;

/// `iris` in `folder` without any of our variables.
fn iris(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_iris"));
    command.current_dir(folder).args(args);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("IRIS_") {
            command.env_remove(name);
        }
    }
    command
}

struct Done {
    code: i32,
    stdout: String,
    stderr: String,
}

fn done(command: &mut Command) -> Done {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().expect("iris runs");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    Done {
        code: status.code().expect("not killed"),
        stdout: text(stdout),
        stderr: text(stderr),
    }
}

fn with_node(text: &str) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("node.toml"), text).expect("write");
    folder
}

/// `iris config check` of the good file with `from` replaced by `to` fails with `error`, on stderr alone.
fn check_refuses(from: &str, to: &str, error: &str) {
    assert!(NODE.contains(from), "{from}");
    let folder = with_node(&NODE.replacen(from, to, 1));
    let done = done(&mut iris(folder.path(), &["config", "check", "node.toml"]));
    assert_eq!((done.code, done.stdout.as_str()), (1, ""), "{}", done.stderr);
    assert!(
        done.stderr.contains(error),
        "for {to}:\n  found {}\n  not   {error}",
        done.stderr
    );
    assert!(
        !done.stderr.contains("0123456789abcdef"),
        "a secret is shown: {}",
        done.stderr
    );
}

#[test]
fn what_a_node_could_start_with_is_called_good_and_nothing_else() {
    let folder = tempfile::tempdir().expect("a folder");
    DevCluster::prepare(folder.path(), &Regions::built_in(), Ports::Free).expect("prepared");
    let check = || {
        done(&mut iris(
            folder.path(),
            &["config", "check", "config/us-east-edge-1.toml"],
        ))
    };
    let found = check();
    assert_eq!(found.code, 0, "{}", found.stderr);
    assert_eq!(
        found.stdout,
        "config/us-east-edge-1.toml is good: the edge node us-east-edge-1 of us-east\n"
    );
    assert!(found.stderr.contains("holds no node yet"), "{}", found.stderr);
    let key = folder.path().join("nodes/us-east-edge-1/certs/client.key");
    let good = fs::read(&key).expect("read");
    fs::remove_file(&key).expect("removed");
    let found = check();
    assert_eq!((found.code, found.stdout.as_str()), (1, ""), "{}", found.stderr);
    assert!(found.stderr.contains("client.key"), "{}", found.stderr);
    fs::write(&key, good).expect("write");
    let file = folder.path().join("config/us-east-edge-1.toml");
    let text = fs::read_to_string(&file).expect("read");
    let without: Vec<&str> = text.lines().filter(|line| !line.starts_with("id = ")).collect();
    fs::write(&file, without.join("\n")).expect("write");
    let found = check();
    assert_eq!((found.code, found.stdout.as_str()), (1, ""), "{}", found.stderr);
    assert!(found.stderr.contains("cluster.id is not set"), "{}", found.stderr);
}

#[test]
fn a_file_that_a_setting_names_and_cannot_be_used_is_told_with_its_line() {
    let folder = tempfile::tempdir().expect("a folder");
    DevCluster::prepare(folder.path(), &Regions::built_in(), Ports::Free).expect("prepared");
    let config = folder.path().join("config/us-east-edge-1.toml");
    let good = fs::read_to_string(&config).expect("read");
    fs::write(folder.path().join("note.txt"), "no certificate").expect("write");
    let others = "nodes/us-east-edge-2/certs";
    for (table, field, file, expected) in [
        (
            "[tls.peer]",
            "ca",
            "note.txt",
            "expected one or more PEM certificates; name the PEM file with the certificate of the CA",
        ),
        ("[tls.peer]", "cert", "none.pem", "No such file or directory"),
        (
            "[tls.peer]",
            "cert",
            &format!("{others}/peer.pem"),
            "use files that were issued together",
        ),
        (
            "[tls.client]",
            "key",
            "note.txt",
            "name the PEM files of the certificate that clients see",
        ),
        (
            "[[auth.jwt.keys]]",
            "public_key",
            "none.pub",
            "No such file or directory (os error 2); name the PEM file with the public key",
        ),
        (
            "[[auth.jwt.keys]]",
            "public_key",
            "note.txt",
            "expected an Ed25519 public key in PEM",
        ),
    ] {
        let mut within = false;
        let mut at = None;
        let lines = good.lines().enumerate().map(|(i, line)| {
            within = line == table || within && !line.starts_with('[');
            if within && line.starts_with(&format!("{field} = ")) {
                at = Some(i + 1);
                return format!("{field} = \"../{file}\"");
            }
            line.to_owned()
        });
        let lines: Vec<String> = lines.collect();
        let at = at.unwrap_or_else(|| panic!("no {field} in {table} of\n{good}"));
        fs::write(&config, lines.join("\n")).expect("write");
        let key = format!(
            "{}.{field} = ",
            table.trim_matches(['[', ']']).replace("keys", "keys.0")
        );
        let config = config.to_str().expect("UTF-8");
        for args in [
            ["config", "check", config].as_slice(),
            &["serve", "--config", config],
        ] {
            let found = done(&mut iris(folder.path(), args));
            assert_eq!((found.code, found.stdout.as_str()), (1, ""), "{}", found.stderr);
            // Of a pair that does not belong together either may be the wrong one.
            let named = if expected.contains("issued together") {
                vec!["us-east-edge-1.toml:".to_owned(), "tls.peer.key = ".to_owned()]
            } else {
                vec![format!("us-east-edge-1.toml:{at}: {key}"), file.to_owned()]
            };
            for part in named.iter().map(String::as_str).chain([expected]) {
                assert!(found.stderr.contains(part), "no {part:?} in\n{}", found.stderr);
            }
        }
    }
}

#[test]
fn a_log_filter_that_a_node_would_refuse_is_refused_by_the_check() {
    let folder = tempfile::tempdir().expect("a folder");
    DevCluster::prepare(folder.path(), &Regions::built_in(), Ports::Free).expect("prepared");
    let config = "config/us-east-edge-1.toml";
    for args in [
        ["config", "check", config].as_slice(),
        &["serve", "--config", config],
    ] {
        let found = done(iris(folder.path(), args).env("IRIS_LOG", "loud"));
        assert_eq!((found.code, found.stdout.as_str()), (1, ""), "{}", found.stderr);
        assert!(
            found.stderr.contains(
                "environment IRIS_LOG: log filter \"loud\": \"loud\" is no level; expected a level"
            ),
            "{}",
            found.stderr
        );
    }
}

#[test]
fn nothing_is_made_among_the_files_of_others() {
    let folder = tempfile::tempdir().expect("a folder");
    let cluster = DevCluster::prepare(&folder.path().join("data"), &Regions::built_in(), Ports::Free);
    let node = cluster.expect("prepared").nodes.remove(0);
    let (config, home) = (node.config.display().to_string(), folder.path().join("home"));
    for data in [&home, &node.data] {
        fs::create_dir_all(data).expect("made");
        fs::write(data.join("thesis.txt"), "").expect("write");
    }
    for args in [
        ["serve", "--config", &config, "--create"].as_slice(),
        &["serve", "--config", &config, "--new-cluster"],
        &["serve", "--config", &config],
        &["dev", "--data", "home", "--ports", "free"],
    ] {
        let found = done(&mut iris(folder.path(), args));
        assert_eq!((found.code, found.stdout.as_str()), (1, ""), "{}", found.stderr);
        let data = if args[0] == "dev" { &home } else { &node.data };
        let named = [
            data.to_str().expect("UTF-8"),
            "\"thesis.txt\"",
            "missing or empty",
        ];
        assert!(
            named.iter().all(|part| found.stderr.contains(part)),
            "{args:?}: {}",
            found.stderr
        );
        assert_eq!(fs::read_dir(data).expect("read").count(), 1, "{args:?}");
    }
}

#[test]
fn region_files_are_checked_and_a_start_without_a_file_says_how_to_give_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let found = done(&mut iris(folder.path(), &["serve"]));
    assert_eq!(found.code, 1);
    assert!(found.stderr.contains("--config FILE"), "{}", found.stderr);
    let regions = done(&mut iris(
        Path::new(env!("CARGO_MANIFEST_DIR")),
        &["config", "check", "regions"],
    ));
    assert_eq!(
        (regions.code, regions.stdout.as_str()),
        (0, "regions is good: ap-south, eu-west, us-east\n")
    );
}

#[test]
fn a_wrong_configuration_is_refused_with_its_place() {
    check_refuses(
        "max_body",
        "max_bodi",
        "node.toml:20: limits.max_bodi = \"32KiB\": there is no such key; expected one of: max_body",
    );
    check_refuses(
        "\"32KiB\"",
        "[1]",
        "node.toml:20: limits.max_body = [1]: invalid type: found sequence, expected a number of bytes",
    );
    check_refuses(
        "\"32KiB\"",
        "\"2MiB\"",
        "node.toml:20: limits.max_body = \"2MiB\": expected 256B to 1MiB",
    );
    check_refuses("[limits]", "[limits", "node.toml:19: this is not TOML");
    check_refuses(
        "[limits]",
        "[listen]\nclient = \"0.0.0.0:7000\"\n[limits]",
        "node.toml:20: listen.client = \"0.0.0.0:7000\": clients would be told this wildcard address and cannot \
         connect to it; set advertise.client",
    );
    check_refuses(
        "\"0123456789abcdef0123456789abcdef\"",
        "\"0123456789abcdef\"",
        "node.toml:17: auth.jwt.keys.0.secret = ***: expected at least 32 bytes",
    );
    check_refuses(
        "secret = \"",
        "secret = 1 # \"",
        "node.toml:17: auth.jwt.keys.0.secret = ***: wrong type",
    );
}

#[test]
fn a_file_that_is_not_there_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    for args in [
        ["config", "check", "none.toml"].as_slice(),
        &["config", "print", "--config", "none.toml"],
    ] {
        let found = done(&mut iris(folder.path(), args));
        assert_eq!((found.code, found.stdout.as_str()), (1, ""));
        assert!(
            found.stderr.contains("cannot read none.toml: No such file"),
            "{}",
            found.stderr
        );
    }
}

#[test]
fn variables_and_flags_override_the_file_and_are_named() {
    let folder = with_node(NODE);
    let mut command = iris(
        folder.path(),
        &[
            "config",
            "print",
            "--config",
            "node.toml",
            "--set",
            "limits.user_burst=9",
        ],
    );
    let found = done(
        command
            .env("IRIS_LIMITS__WINDOW_MESSAGES", "7")
            .env("IRIS_TEST_X", "y"),
    );
    assert_eq!(found.code, 0, "{}", found.stderr);
    for line in [
        "max_body = \"32KiB\"  # node.toml:20",
        "window_messages = 7  # environment IRIS_LIMITS__WINDOW_MESSAGES",
        "user_burst = 9  # flag --set",
        "devices_per_user = 32",
        "peer = \"127.0.0.1:7111\"  # built-in/us-east.toml:30",
        "secret = \"***\"  # node.toml:17",
    ] {
        assert!(
            found.stdout.lines().any(|found| found == line),
            "no {line} in\n{}",
            found.stdout
        );
    }
    assert!(
        toml::from_str::<toml::Table>(&found.stdout).is_ok(),
        "{}",
        found.stdout
    );

    let mut command = iris(folder.path(), &["config", "check", "node.toml"]);
    let found = done(command.env("IRIS_LIMITS__WINDOW_MESSAGES", "0"));
    assert_eq!(found.code, 1);
    assert!(
        found.stderr.contains(
            "environment IRIS_LIMITS__WINDOW_MESSAGES: limits.window_messages = 0: expected 1 to 65536"
        ),
        "{}",
        found.stderr
    );
}

#[test]
fn the_configuration_prints_as_json_without_secrets() {
    let folder = with_node(NODE);
    let found = done(&mut iris(
        folder.path(),
        &["config", "print", "--config", "node.toml", "--output", "json"],
    ));
    assert_eq!(found.code, 0, "{}", found.stderr);
    assert!(!found.stdout.contains("0123456789abcdef"));
    let value: serde_json::Value = serde_json::from_str(&found.stdout).expect("JSON");
    assert_eq!(value["config"]["limits"]["max_body"], "32KiB");
    assert_eq!(value["config"]["auth"]["jwt"]["keys"][0]["secret"], "***");
    assert_eq!(value["sources"]["limits.max_body"], "node.toml:20");
}

#[test]
fn a_token_is_minted_with_the_key_of_the_data_folder() {
    let folder = tempfile::tempdir().expect("a folder");
    let found = done(&mut iris(folder.path(), &["token", "--user", "alice"]));
    assert_eq!((found.code, found.stdout.as_str()), (1, ""));
    assert!(
        found.stderr.contains("start `iris dev` once") && found.stderr.contains("data/keys/token.key"),
        "{}",
        found.stderr
    );

    let files = KeyFiles::in_data(&folder.path().join("data"));
    files.create_or_keep().expect("made");
    let found = done(&mut iris(
        folder.path(),
        &["token", "--user", "alice", "--ttl", "90s"],
    ));
    assert_eq!((found.code, found.stderr.as_str()), (0, ""));
    let verifier = Verifier::new(vec![
        VerifyingKey::from_config(&JwtKey::ed25519(files.public)).expect("public"),
    ]);
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970")
        .as_secs();
    let verified = verifier.verify(found.stdout.trim_end(), now).expect("good");
    assert_eq!(
        (verified.user.as_str(), verified.expires_at - verified.issued_at),
        ("alice", 90)
    );
    assert!(matches!(
        verifier.verify(found.stdout.trim_end(), now + 86_400),
        Err(TokenError::Expired { .. })
    ));
}

#[test]
fn a_token_is_minted_with_a_given_secret() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("secret"), "0123456789abcdef0123456789abcdef\n").expect("write");
    let found = done(&mut iris(
        folder.path(),
        &["token", "--user", "bob", "--key", "secret", "--issuer", "us"],
    ));
    assert_eq!(found.code, 0, "{}", found.stderr);
    let key = VerifyingKey::from_secret(None, b"0123456789abcdef0123456789abcdef").expect("secret");
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970")
        .as_secs();
    assert_eq!(
        Verifier::new(vec![key])
            .verify(found.stdout.trim_end(), now)
            .expect("good")
            .user
            .as_str(),
        "bob"
    );
}

#[test]
fn the_file_of_a_region_is_checked_with_its_folder() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (folder, file, hint) in [
        (
            repository.to_owned(),
            "regions/us-east.toml",
            "as iris config check regions",
        ),
        (
            repository.join("regions"),
            "us-east.toml",
            "as iris config check .",
        ),
    ] {
        let found = done(&mut iris(&folder, &["config", "check", file]));
        assert_eq!((found.code, found.stdout.as_str()), (1, ""), "{}", found.stderr);
        assert!(found.stderr.contains(hint), "{}", found.stderr);
    }
}

#[test]
fn wrong_usage_and_wrong_values_have_their_exit_codes() {
    let folder = tempfile::tempdir().expect("a folder");
    KeyFiles::in_data(&folder.path().join("data"))
        .create_or_keep()
        .expect("made");
    for (args, code, error) in [
        (["token", "--user", "a\nb"].as_slice(), 1, "user id"),
        (&["token", "--user", "a", "--ttl", "25h"], 1, "1 s to 24 h"),
        (
            &["token", "--user", "a", "--ttl", "soon"],
            2,
            "expected a duration such as",
        ),
        (&["token"], 2, "--user"),
        (&["config", "check"], 2, "<FILE>"),
        (&["config", "print", "--set", "x"], 2, "expected KEY=VALUE"),
        (&["nonsense"], 2, "unrecognized subcommand"),
        (
            &["config", "print"],
            1,
            "node: it is missing; set node.name, node.region in the file",
        ),
    ] {
        let found = done(&mut iris(folder.path(), args));
        assert_eq!(
            (found.code, found.stdout.as_str()),
            (code, ""),
            "{args:?}: {}",
            found.stderr
        );
        assert!(
            found.stderr.contains(error),
            "{args:?}:\n  found {}\n  not   {error}",
            found.stderr
        );
    }
    for args in [
        ["--help"].as_slice(),
        &["config", "check", "--help"],
        &["config", "print", "--help"],
        &["token", "--help"],
    ] {
        let found = done(&mut iris(folder.path(), args));
        assert!(
            found.code == 0 && found.stdout.contains("Examples:\n  iris"),
            "{args:?}: {}",
            found.stdout
        );
    }
}
