//! `iris client` as its users run it, against `iris dev`: three regions as real servers in another process.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// `iris dev` in a folder of its own; ends with this.
struct Dev {
    folder: TempDir,
    process: Child,
}

fn iris(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_iris"));
    command.current_dir(folder);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("IRIS_") {
            command.env_remove(name);
        }
    }
    command
}

impl Dev {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut process = iris(folder.path())
            .args(["dev", "--ports", "free", "--stop-with-stdin"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let mut said = String::new();
        let ready = lines.by_ref().map_while(Result::ok).any(|line| {
            said.push_str(&line);
            said.push('\n');
            line.contains("are ready")
        });
        assert!(ready, "iris dev did not start:\n{said}");
        // Somebody has to read on, or it stops at a full pipe.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Self { folder, process }
    }

    fn client(&self, args: &str) -> Command {
        let mut command = iris(self.folder.path());
        command.arg("client").args(args.split_whitespace());
        command
    }

    fn run(&self, args: &str) -> Output {
        self.client(args).output().unwrap()
    }

    /// What is printed by a command that succeeds.
    fn good(&self, args: &str) -> String {
        let output = self.run(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "iris client {args}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What a command says that fails, with nothing on stdout.
    fn bad(&self, args: &str) -> String {
        let output = self.run(args);
        assert_eq!(output.status.code(), Some(1), "iris client {args}: {output:?}");
        assert_eq!(output.stdout, b"");
        String::from_utf8(output.stderr).unwrap()
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

fn json(line: &str) -> Value {
    serde_json::from_str(line).unwrap()
}

#[test]
fn send_listen_and_watch_across_regions() {
    let dev = Dev::start();

    // A message to somebody who is away, received in another region, once.
    let id = dev.good("send --region us-east --as alice --to bob one");
    let id = id.trim();
    assert_eq!(id.len(), 36, "{id}");
    let again = dev.good(&format!(
        "send --region us-east --as alice --to bob --id {id} one --output json"
    ));
    assert_eq!(
        (&json(&again)["id"], &json(&again)["duplicate"]),
        (&Value::from(id), &Value::from(true))
    );
    let listen = "listen --as bob --device phone --timeout 20s --output json";
    let first = json(&dev.good(&format!("{listen} --region ap-south --count 1")));
    assert_eq!(
        (&first["from"], &first["body"], &first["id"]),
        (&"alice".into(), &"one".into(), &id.into())
    );

    // The device goes on where it stopped, in another region; another device gets everything.
    let mut send = dev
        .client("send --region us-east --as alice --to bob -")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    send.stdin
        .take()
        .unwrap()
        .write_all("zwei\u{1b}[2J\n".as_bytes())
        .unwrap();
    assert!(send.wait().unwrap().success());
    let second = json(&dev.good(&format!("{listen} --region eu-west --count 1")));
    assert_eq!(second["body"], "zwei\u{1b}[2J");
    let tablet = dev.good("listen --as bob --device tablet --count 2 --timeout 20s");
    let texts: Vec<&str> = tablet
        .lines()
        .map(|line| line.split_once(' ').unwrap().1)
        .collect();
    assert_eq!(texts, ["alice: one", "alice: zwei\u{fffd}[2J"]);
    let nothing = dev.bad("listen --as bob --device phone --count 1 --timeout 1s");
    assert!(nothing.contains("0 messages of 1 came within 1s"), "{nothing}");

    // Presence of a user elsewhere; the watching user itself stays invisible.
    let mut watch = dev
        .client("watch --region us-east --as alice --output json --count 4 carol alice")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let mut next = || json(&lines.next().unwrap().unwrap());
    for _ in 0..2 {
        assert_eq!(next()["status"], "offline");
    }
    dev.good(
        "listen --region eu-west --as carol --device laptop --status away --status-text lunch --timeout 1s",
    );
    let away = next();
    assert_eq!(
        (&away["user"], &away["status"], &away["text"], &away["region"]),
        (
            &"carol".into(),
            &"away".into(),
            &"lunch".into(),
            &"eu-west".into()
        )
    );
    assert_eq!(next()["status"], "offline");
    assert!(watch.wait().unwrap().success());

    // What is wrong is named, with what to do.
    for (args, expected) in [
        (
            "send --as alice --to bob --region mars x",
            "there is no region mars in data: expected one of ap-south, eu-west, us-east",
        ),
        (
            "send --as alice --to bob --data elsewhere x",
            "there is no elsewhere/dev.json: start `iris dev` with the same --data, name its folder with --data, or give --endpoint, --ca and --token",
        ),
        (
            "send --as alice --to bob --endpoint nowhere x",
            "--endpoint \"nowhere\": expected HOST:PORT",
        ),
        ("send --token nonsense --to bob x", "the token was refused"),
        ("listen --as bob --ca missing.pem", "missing.pem"),
        (
            "send --as alice --to bob --timeout 1s --endpoint 127.0.0.1:1 x",
            "cannot make a second message",
        ),
    ] {
        let said = dev.bad(args);
        assert!(said.contains(expected), "{args}:\n{said}");
    }
}
