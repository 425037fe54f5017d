//! `iris bench` against a cluster of this process: what it reports must fit to what it did.

mod common;

use common::{TestCluster, regions};
use serde_json::Value;

#[tokio::test(flavor = "multi_thread")]
async fn a_load_across_regions_is_delivered_once_and_reported() {
    let cluster = TestCluster::start(&regions(&["us-east", "eu-west"]), &[]).await;
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_iris"));
    command
        .args([
            "bench",
            "--output",
            "json",
            "--cross",
            "--away",
            "0.25",
            "--connections",
            "8",
        ])
        .args([
            "--users",
            "4",
            "--rate",
            "200",
            "--warmup",
            "500ms",
            "--duration",
            "1s",
        ])
        .arg("--data")
        .arg(cluster.folder.path());
    let output = common::within("bench ended", command.output()).await.unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let check = &report["check"];
    let count = |name: &str| {
        check[name]
            .as_u64()
            .unwrap_or_else(|| panic!("no {name} in {report}"))
    };
    assert_eq!(check["passed"], true, "{report}");
    assert_eq!(count("sent") + count("not_sent"), 300, "{report}");
    assert_eq!(
        (count("accepted"), count("lost"), count("duplicates")),
        (count("sent"), 0, 0)
    );
    // Two devices of each user who was online, one of each who came later: a quarter of the messages.
    assert_eq!(count("expected"), count("delivered"));
    let away = count("sent") * 2 - count("delivered");
    assert!(away.abs_diff(count("sent") / 4) <= 8, "{report}");
    assert!(report["send_to_delivered"]["p99"].as_f64().unwrap() > 0.0);
    // Every hop was used, and each batch holds something.
    for hop in [
        "send",
        "client_write",
        "client_read",
        "edge_deposits",
        "owner_deliveries",
        "commit_operations",
        "link_operations",
        "peer_write",
    ] {
        let mean = report["batches"][hop].as_f64().unwrap_or_default();
        assert!((1.0..10_000.0).contains(&mean), "{hop}: {report}");
    }
    // What cannot work is told before any load.
    for (args, expected) in [
        ("--connections 0", "--connections 0 leaves nothing to do"),
        (
            "--connections 2 --users 2 --size 100000",
            "--size 100000: the servers take at most 65536 bytes (limits.max_body)",
        ),
    ] {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_iris"));
        command
            .arg("bench")
            .args(args.split(' '))
            .arg("--data")
            .arg(cluster.folder.path());
        let output = common::within("bench ended", command.output()).await.unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            (output.status.code(), output.stdout.len()),
            (Some(1), 0),
            "{stderr}"
        );
        assert!(
            stderr.contains(expected) && !stderr.contains("sent/s"),
            "{stderr}"
        );
    }
    cluster.stop().await;
}
