//! `iris client` as its users run it, against `iris dev`: three regions as real servers in another process.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// Long enough for a loaded machine; a test that needs it has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// `iris dev` in a folder of its own; ends with this.
struct Dev {
    folder: TempDir,
    process: Child,
    /// Its lines on stderr after it was ready.
    said: mpsc::Receiver<String>,
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

/// Goes on reading what a process says: one that nobody reads stops at a full pipe.
fn read_on(lines: impl Iterator<Item = std::io::Result<String>> + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            // Whether anybody looks at it or not.
            let _ = sender.send(line);
        }
    });
    receiver
}

/// Until a line holds `what`; gives all that was said.
fn says(lines: &mpsc::Receiver<String>, what: &str) -> String {
    let mut said = String::new();
    while !said.contains(what) {
        match lines.recv_timeout(PATIENCE) {
            Ok(line) => said.push_str(&(line + "\n")),
            Err(error) => panic!("{error} before {what:?} was said:\n{said}"),
        }
    }
    said
}

impl Dev {
    fn start() -> Self {
        Self::start_with(&[])
    }

    fn start_with(args: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut process = iris(folder.path())
            .args(["dev", "--ports", "free", "--stop-with-stdin"])
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let said = read_on(BufReader::new(process.stderr.take().unwrap()).lines());
        says(&said, "ready after");
        Self {
            folder,
            process,
            said,
        }
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

fn signal(process: &Child, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(process.id()).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

#[test]
fn ctrl_c_drains_and_a_second_one_ends_at_once() {
    let mut dev = Dev::start_with(&["--single"]);
    // A client that gives no sign of life: the drain waits for it for some time.
    let mut silent = dev.client("listen --as bob --device phone");
    let mut silent = silent
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let said = read_on(BufReader::new(silent.stderr.take().unwrap()).lines());
    says(&said, "connected to");

    // A second one would start the same nodes: it names the folder, not a port of them.
    let second = iris(dev.folder.path())
        .args(["dev", "--single"])
        .output()
        .unwrap();
    let second_said = String::from_utf8(second.stderr).unwrap();
    assert_eq!(second.status.code(), Some(1), "{second_said}");
    let other = format!("another `iris dev`, process {}, uses", dev.process.id());
    assert!(
        second_said.contains(&other) && second_said.contains("--data"),
        "{second_said}"
    );

    signal(&silent, Signal::STOP);
    signal(&dev.process, Signal::INT);
    says(&dev.said, "Ctrl-C: draining; Ctrl-C again ends at once");
    signal(&dev.process, Signal::INT);
    says(
        &dev.said,
        "ended before the drain was over; what was accepted is in the store",
    );
    assert_eq!(dev.process.wait().unwrap().code(), Some(1));
    silent.kill().unwrap();
    silent.wait().unwrap();

    // Nothing else is lost by it: the next start is as after a crash.
    let program = &["dev", "--single", "--ports", "free"];
    let mut again = iris(dev.folder.path())
        .args(program)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let said = read_on(BufReader::new(again.stderr.take().unwrap()).lines());
    says(&said, "ready after");
    signal(&again, Signal::INT);
    says(&said, "stopped");
    assert!(again.wait().unwrap().success());
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
