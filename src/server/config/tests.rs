use std::fs;

use super::*;

const GOOD: &str = r#"
[node]
name = "us-east-edge-1"
region = "us-east"
data = "state"

[tls.peer]
ca = "ca.pem"
cert = "/etc/iris/node.pem"
key = "node.key"

[tls.client]
cert = "client.pem"
key = "client.key"

[[auth.jwt.keys]]
algorithm = "EdDSA"
public_key = "token.pub"

[limits]
max_body = "32KiB"
"#;

struct Files(tempfile::TempDir);

impl Files {
    fn new(text: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("iris.toml"), text).expect("write");
        Self(folder)
    }

    fn load(&self, env: &[(&str, &str)]) -> Result<Loaded, String> {
        let env = env
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .collect();
        let options = LoadOptions {
            file: Some(self.0.path().join("iris.toml")),
            env,
            flags: vec![],
        };
        self.load_with(options)
    }

    fn load_with(&self, options: LoadOptions) -> Result<Loaded, String> {
        // Errors without the folder's random name.
        let folder = format!("{}/", self.0.path().display());
        NodeConfig::load(options).map_err(|error| error.to_string().replace(&folder, ""))
    }
}

#[cfg(unix)]
#[test]
fn a_path_above_the_file_is_plain_unless_a_link_is_on_its_way() {
    let folder = tempfile::tempdir().unwrap();
    let at = |path: &str| folder.path().join(path);
    fs::create_dir_all(at("real/config")).unwrap();
    std::os::unix::fs::symlink(at("real/config"), at("link")).unwrap();
    let plain = |from: &str, path: &str| joined(&at(from), Path::new(path));
    assert_eq!(plain("real/config", "../data"), at("real/data"));
    assert_eq!(plain("real/config", "../../data"), at("data"));
    assert_eq!(plain("real/config", "/data"), Path::new("/data"));
    assert_eq!(plain("link", "../data"), at("link/../data"));
    assert_eq!(joined(Path::new(""), Path::new("../data")), Path::new("../data"));
}

#[test]
fn layers_override_each_other_and_each_value_knows_its_own() {
    let files = Files::new(GOOD);
    let options = LoadOptions {
        file: Some(files.0.path().join("iris.toml")),
        env: vec![
            ("IRIS_LIMITS__WINDOW_MESSAGES".into(), "7".into()),
            ("IRIS_LIMITS__INBOX_MESSAGES".into(), "70".into()),
        ],
        flags: vec![],
    };
    let loaded = files
        .load_with(options.flag("--set", "limits.inbox_messages", "700"))
        .expect("good");
    let config = &loaded.config;
    assert_eq!(config.limits.max_body, 32 * 1024);
    assert_eq!(
        (config.limits.window_messages, config.limits.inbox_messages),
        (7, 700)
    );
    assert_eq!(config.limits.devices_per_user, Limits::default().devices_per_user);
    assert_eq!(config.listen.peer.port(), 7111, "from the region's file");
    assert_eq!(config.node.roles, [Role::Edge]);
    assert_eq!(config.node.data, files.0.path().join("state"));
    assert_eq!(config.tls.peer.ca, files.0.path().join("ca.pem"));
    assert_eq!(config.tls.peer.cert, Path::new("/etc/iris/node.pem"));
    let place = |key: &str| loaded.sources.get(key).map(Place::to_string).unwrap_or_default();
    assert!(
        place("limits.max_body").ends_with("iris.toml:21"),
        "{}",
        place("limits.max_body")
    );
    assert_eq!(
        place("limits.window_messages"),
        "environment IRIS_LIMITS__WINDOW_MESSAGES"
    );
    assert_eq!(place("limits.inbox_messages"), "flag --set");
    assert_eq!(place("limits.devices_per_user"), "");
    assert!(
        place("listen.peer").starts_with("built-in/us-east.toml:"),
        "{}",
        place("listen.peer")
    );
    assert!(
        place("auth.jwt.keys.0.public_key").ends_with("iris.toml:18"),
        "{}",
        place("auth.jwt.keys.0.public_key")
    );
}

/// The owner and the store judge by the same time; so both are given it.
#[test]
fn when_devices_expire_is_said_to_the_machines_and_to_the_store() {
    let files = Files::new(GOOD);
    let limits = |text: &str| {
        let options = LoadOptions {
            file: Some(files.0.path().join("iris.toml")),
            ..LoadOptions::default()
        };
        let loaded = files.load_with(options.flag("--set", "devices.expire_after", text));
        let config = loaded.map(|loaded| loaded.config);
        config.map(|config| {
            let (core, store) = (config.core_limits(), config.store_limits());
            assert_eq!(core.expiry_margin_ms, store.expiry_margin_ms);
            assert_eq!(core.device_expiry_ms, store.device_expiry_ms);
            store.device_expiry_ms
        })
    };
    let day = 24 * 60 * 60 * 1000;
    assert_eq!(limits("7d"), Ok(7 * day));
    assert_eq!(limits("0s"), Ok(0));
    assert_eq!(limits("3650d"), Ok(3_650 * day));
    let error = limits("3651d").expect_err("too long");
    assert!(error.contains("devices.expire_after"), "{error}");
}

#[test]
fn faults_are_allowed_by_word_only_and_the_wan_goes_with_them() {
    let files = Files::new(GOOD);
    let faults = |env: &[(&str, &str)]| files.load(env).map(|loaded| loaded.config.faults);
    assert_eq!(faults(&[]), Ok(FaultsConfig::default()));
    assert!(!FaultsConfig::default().allowed && !FaultsConfig::default().wan);
    let both = [("IRIS_FAULTS__ALLOWED", "true"), ("IRIS_FAULTS__WAN", "true")];
    let (allowed, wan) = (true, true);
    assert_eq!(faults(&both), Ok(FaultsConfig { allowed, wan }));
    let error = faults(&both[1..]).expect_err("they go together");
    assert!(
        error.contains("faults.wan = true: expected false where faults.allowed is false"),
        "{error}"
    );
}

#[test]
fn what_is_printed_loads_again() {
    let files = Files::new(GOOD);
    let first = files.load(&[]).expect("good");
    fs::write(files.0.path().join("iris.toml"), first.config.to_toml()).expect("write");
    let second = files.load(&[]).expect("as printed");
    assert_eq!(second.config, first.config);
}

#[test]
fn a_wrong_file_names_line_key_value_and_what_was_expected() {
    let refused = |from: &str, to: &str, error: &str| {
        assert!(GOOD.contains(from), "{from}");
        let found = Files::new(&GOOD.replacen(from, to, 1)).load(&[]).expect_err(to);
        assert!(
            found.contains(error),
            "for {to}:\n  found {found}\n  not   {error}"
        );
    };
    refused(
        "max_body",
        "max_bodi",
        "iris.toml:21: limits.max_bodi = \"32KiB\": there is no such key; expected one of: max_body,",
    );
    refused(
        "\"32KiB\"",
        "true",
        "iris.toml:21: limits.max_body = true: invalid type: found bool true, expected a number of bytes",
    );
    refused(
        "\"32KiB\"",
        "\"32kb\"",
        "iris.toml:21: limits.max_body = \"32kb\": invalid value",
    );
    refused(
        "\"32KiB\"",
        "-1",
        "iris.toml:21: limits.max_body = -1: invalid value",
    );
    refused(
        "\"32KiB\"",
        "255",
        "iris.toml:21: limits.max_body = 255: expected 256B to 1MiB",
    );
    refused(
        "\"32KiB\"",
        "1\nmax_body = 2",
        "iris.toml:22: this is not TOML: duplicate key",
    );
    refused(
        "[limits]",
        "[limit]",
        "iris.toml:20: limit: there is no such key; expected one of: cluster, node",
    );
    refused(
        "\"us-east\"",
        "\"mars\"",
        "iris.toml:4: node.region = \"mars\": expected one of: ap-south, eu-west, us-east",
    );
    refused(
        "\"us-east\"",
        "\"eu-west\"",
        "iris.toml:4: node.region = \"eu-west\": the node us-east-edge-1 belongs to the region us-east",
    );
    refused(
        "name = \"us-east-edge-1\"",
        "name = \"Edge 1\"",
        "iris.toml:3: node.name = \"Edge 1\"",
    );
    refused(
        "region = \"us-east\"",
        "",
        "node.region: it is missing; set it in the file, or as IRIS_NODE__REGION, or by --set node.region=VALUE",
    );
    refused(
        "EdDSA",
        "RS256",
        "iris.toml:17: auth.jwt.keys.0.algorithm = \"RS256\"",
    );
    refused(
        "public_key",
        "publickey",
        "iris.toml:18: auth.jwt.keys.0.publickey = \"token.pub\": there is no such key",
    );
    refused(
        "[tls.client]\ncert = \"client.pem\"\nkey = \"client.key\"\n",
        "",
        "tls.client: an edge node needs",
    );
    refused(
        "[[auth.jwt.keys]]\nalgorithm = \"EdDSA\"\npublic_key = \"token.pub\"\n",
        "",
        "auth.jwt.keys: an edge node needs",
    );
    refused(
        "[limits]",
        "[cluster]\nshard_count = 1000\n[limits]",
        "iris.toml:21: cluster.shard_count = 1000: expected a power of two",
    );
    for (set, value) in [
        ("", "5s"),
        ("deposit = \"1s\"\n", "1s"),
        ("link = \"1500ms\"\n", "2s"),
    ] {
        refused(
            "[limits]",
            &format!("[timeouts]\n{set}geo = \"{value}\"\n[limits]"),
            "expected less than timeouts.deposit and timeouts.link",
        );
    }
    for factor in [0, 2, 4] {
        refused(
            "[limits]",
            &format!("[cluster]\nreplication_factor = {factor}\n[limits]"),
            &format!(
                "iris.toml:21: cluster.replication_factor = {factor}: expected 3, the number of regions"
            ),
        );
    }
    refused(
        "[limits]",
        "[log]\nlevel = \"loud\"\n[limits]",
        "iris.toml:21: log.level = \"loud\": log filter \"loud\"",
    );
    refused(
        "[limits]",
        "[timeouts]\nlink = \"1s\"\n[limits]",
        "iris.toml:21: timeouts.link = \"1s\": expected more than intervals.link_ping",
    );
    refused(
        "data = \"state\"",
        "roles = [\"core\"]",
        "node.roles = [\"core\"]: us-east-core-1 is the core node of us-east already",
    );
    refused(
        "data = \"state\"",
        "roles = [\"chief\"]",
        "node.roles.0 = \"chief\": expected one of: core, edge",
    );
}

#[test]
fn a_wrong_variable_or_flag_is_named() {
    let files = Files::new(GOOD);
    let refused = |name: &str, value: &str, error: &str| {
        let found = files.load(&[(name, value)]).expect_err(name);
        assert!(
            found.contains(error),
            "for {name}={value}:\n  found {found}\n  not   {error}"
        );
    };
    refused(
        "IRIS_LIMITS__MAX_BODY",
        "lots",
        "environment IRIS_LIMITS__MAX_BODY: limits.max_body = \"lots\": invalid value",
    );
    refused(
        "IRIS_LIMITS__MAX_BODY",
        "1",
        "environment IRIS_LIMITS__MAX_BODY: limits.max_body = 1: expected 256B to 1MiB",
    );
    refused(
        "IRIS_LIMITZ__MAX_BODY",
        "1",
        "environment IRIS_LIMITZ__MAX_BODY: limitz: there is no such key",
    );
    refused(
        "IRIS_LIMITS__MAX_BODI",
        "32KiB",
        "environment IRIS_LIMITS__MAX_BODI: limits.max_bodi = \"32KiB\": there is no such key; expected one of: max_body,",
    );
    refused("IRIS_LIMITS__MAX_BODI", "32KiB", "rename or unset this one");
    refused(
        "IRIS_LIMITS",
        "1",
        "environment IRIS_LIMITS: limits = 1: invalid type",
    );
    for (name, value, range) in [
        (
            "IRIS_NODE__PARTITIONS",
            "many",
            "expected a whole number, from 1 to 4",
        ),
        (
            "IRIS_NODE__PARTITIONS",
            "-1",
            "expected a whole number, from 1 to 4",
        ),
        (
            "IRIS_CLUSTER__SHARD_COUNT",
            "5000000000",
            "expected a whole number, from 1 to 65536 and a power of two",
        ),
        (
            "IRIS_LIMITS__WINDOW_MESSAGES",
            "few",
            "expected a whole number, from 1 to 65536",
        ),
        ("IRIS_TIMEOUTS__DRAIN", "soon", "or \"7d\", from 0s to 1h"),
    ] {
        refused(name, value, range);
        let said = files.load(&[(name, value)]).expect_err(name);
        assert!(!said.contains("u32"), "{said}");
    }
    refused("IRIS_NODE__NAME", "1", "put the value in double quotes");
    refused(
        "IRIS_NODE__ROLES",
        "edge",
        "node.roles = \"edge\": invalid type: found string \"edge\", expected a sequence, such as [",
    );
    for ignored in [
        "IRIS_TEST_SEED",
        "IRIS_LOG",
        "IRIS_CONFIG",
        "IRIS_DATA",
        "IRIS_TOKEN",
        "IRISH",
    ] {
        assert!(files.load(&[(ignored, "x")]).is_ok(), "{ignored}");
    }
    let nothing = NodeConfig::load(LoadOptions::default()).unwrap_err().to_string();
    assert!(
        nothing.contains("node: it is missing; set node.name, node.region in the file, or as IRIS_NODE__NAME, IRIS_NODE__REGION, or by \
                          --set node.name=VALUE --set node.region=VALUE"),
        "{nothing}"
    );
    let options = LoadOptions {
        file: Some(files.0.path().join("iris.toml")),
        ..LoadOptions::default()
    };
    let found = files
        .load_with(options.flag("--set", "node.partitions", "5"))
        .expect_err("too many");
    assert_eq!(found, "flag --set: node.partitions = 5: expected 1 to 4");
}

#[test]
fn all_wrong_values_are_reported_at_once() {
    let files = Files::new(
        &GOOD
            .replace("\"32KiB\"", "1")
            .replace("data = \"state\"", "partitions = 0"),
    );
    let error = files.load(&[]).expect_err("two");
    assert_eq!(error.lines().count(), 2, "{error}");
}

#[test]
fn a_file_that_is_not_there_is_an_error() {
    let options = LoadOptions {
        file: Some("/nonexistent/iris.toml".into()),
        ..LoadOptions::default()
    };
    let error = NodeConfig::load(options).expect_err("missing").to_string();
    assert!(
        error.starts_with("cannot read /nonexistent/iris.toml: No such file"),
        "{error}"
    );
    let files = Files::new(&format!("[regions]\nfolder = \"none\"\n{GOOD}"));
    let error = files.load(&[]).expect_err("missing folder");
    assert!(error.starts_with("cannot read none: No such file"), "{error}");
}

#[test]
fn secrets_are_never_shown() {
    let secret = "0123456789abcdef0123456789abcdef";
    let with = |value: &str| {
        let keys = format!("algorithm = \"HS256\"\nsecret = {value}");
        Files::new(&GOOD.replace("algorithm = \"EdDSA\"\npublic_key = \"token.pub\"", &keys))
    };
    let loaded = with(&format!("\"{secret}\"")).load(&[]).expect("good");
    let found = loaded.config.auth.jwt.keys[0].secret.as_ref().expect("a secret");
    assert_eq!(found.expose(), secret);
    for text in [
        loaded.config.to_toml(),
        format!("{:?}", loaded.config),
        format!("{:?}", loaded.config.flat()),
    ] {
        assert!(!text.contains(secret) && text.contains("***"), "{text}");
    }
    for wrong in ["\"short-0123456789\"", "123456789012"] {
        let error = with(wrong).load(&[]).expect_err("wrong");
        assert!(
            !error.contains("0123456789") && !error.contains("123456789012"),
            "{error}"
        );
        assert!(error.contains("secret"), "{error}");
    }
}

#[test]
fn the_value_of_an_unknown_variable_that_may_be_a_secret_is_never_shown() {
    let files = Files::new(GOOD);
    let keys = "[{ algorithm = \"HS256\", secret = \"0123456789\", other = \"0123456789\" }]";
    for (name, value) in [
        ("IRIS_PASSWORD", "0123456789"),
        ("IRIS_PASSWORD", "x0123456789"),
        ("IRIS_AUTH__JWT__PASSWORD", "0123456789"),
        ("IRIS_STORE__SECRET", "0123456789"),
        ("IRIS_LOG__API_TOKEN", "0123456789"),
        ("IRIS_AUTH__JWT__KEYS", keys),
    ] {
        let error = files.load(&[(name, value)]).expect_err(name);
        assert!(error.contains(name) && !error.contains("0123456789"), "{error}");
        assert!(error.contains("there is no such key"), "{error}");
        assert!(error.contains("may be a secret and is not shown"), "{error}");
    }
    // A known key's value is, unless it is a secret or holds some.
    let few = "[{ algorithm = \"HS256\", secret = \"0123456789\" }]";
    for value in [few, "[{ algorithm = \"HS256\", secret = 123456789 }]", "[]"] {
        let error = files.load(&[("IRIS_AUTH__JWT__KEYS", value)]).expect_err(value);
        assert!(!error.contains("123456789"), "{error}");
    }
}

#[test]
fn a_node_that_its_region_does_not_list_needs_addresses() {
    let files = Files::new(&GOOD.replace("us-east-edge-1", "us-east-edge-9"));
    let error = files.load(&[]).expect_err("no addresses");
    assert!(error.contains("it is missing; set it"), "{error}");
    assert!(
        error.contains("the file of us-east has no node \"us-east-edge-9\" that would say"),
        "{error}"
    );
    let env = [
        ("IRIS_LISTEN__PEER", "127.0.0.1:0"),
        ("IRIS_LISTEN__ADMIN_HTTP", "127.0.0.1:0"),
        ("IRIS_LISTEN__CLIENT", "127.0.0.1:0"),
        ("IRIS_NODE__ROLES", "[\"edge\"]"),
    ];
    assert!(files.load(&env).is_ok());
}

#[test]
fn nobody_is_told_a_wildcard() {
    let files = Files::new(GOOD);
    let client = |value| ("IRIS_LISTEN__CLIENT", value);
    let peer = |value| ("IRIS_LISTEN__PEER", value);
    let told_client = |value| ("IRIS_ADVERTISE__CLIENT", value);
    let told_peer = |value| ("IRIS_ADVERTISE__PEER", value);
    for (env, error) in [
        (
            vec![client("0.0.0.0:7000")],
            "environment IRIS_LISTEN__CLIENT: listen.client = \"0.0.0.0:7000\": clients would be told this wildcard \
             address and cannot connect to it; set advertise.client to",
        ),
        (
            vec![peer("[::]:7001"), told_client("a:1")],
            "environment IRIS_LISTEN__PEER: listen.peer = \"[::]:7001\": other nodes would be told this wildcard \
             address and cannot connect to it; set advertise.peer to",
        ),
        (
            vec![client("0.0.0.0:7000"), told_client("0.0.0.0:7000")],
            "environment IRIS_ADVERTISE__CLIENT: advertise.client = \"0.0.0.0:7000\": expected an address",
        ),
        (
            vec![told_peer("0.0.0.0:7001")],
            "environment IRIS_ADVERTISE__PEER: advertise.peer = \"0.0.0.0:7001\": expected an address",
        ),
        (
            vec![told_client("edge-1")],
            "advertise.client = \"edge-1\": expected HOST:PORT or IP:PORT, such as",
        ),
        (
            vec![told_peer("edge-1:7001")],
            "advertise.peer = \"edge-1:7001\": expected an IP address and a port, such as",
        ),
    ] {
        let found = files.load(&env).expect_err(error);
        assert!(found.contains(error), "found {found}\nnot   {error}");
    }
    let both = [
        client("0.0.0.0:7000"),
        told_client("edge-1.example.com:0"),
        peer("[::]:7001"),
        told_peer("10.0.0.5:7001"),
    ];
    let config = files.load(&both).expect("both are told").config;
    let bound = "0.0.0.0:7000".parse().unwrap();
    assert_eq!(
        config.client_address(bound).to_string(),
        "edge-1.example.com:7000"
    );
    assert_eq!(config.peer_address().to_string(), "10.0.0.5:7001");
    // What nobody is told may be a wildcard: health and metrics, and a core's address for clients.
    let core = Files::new(&GOOD.replace("us-east-edge-1", "us-east-core-1"));
    let harmless = [
        client("0.0.0.0:7000"),
        ("IRIS_LISTEN__ADMIN_HTTP", "0.0.0.0:7002"),
    ];
    let config = core.load(&harmless).expect("nobody is told").config;
    assert_eq!(config.peer_address(), config.listen.peer, "what it listens on");
    let there = "10.0.0.5:7400".parse().unwrap();
    assert_eq!(config.client_address(there).to_string(), "10.0.0.5:7400");
}

#[test]
fn an_address_that_is_none_is_refused_with_an_example() {
    let files = Files::new(GOOD);
    for (name, value) in [
        ("IRIS_LISTEN__PEER", "1.2.3.4"),
        ("IRIS_LISTEN__CLIENT", "edge:7400"),
    ] {
        let error = files.load(&[(name, value)]).unwrap_err();
        assert!(error.contains("such as 10.0.0.5:7410"), "{error}");
    }
}
