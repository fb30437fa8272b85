//! Restoring an old backup.

use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use crate::nodes::{CONVERGENCE, Cluster, within};

/// Replaces all files of a directory, the side files of the database included; no node runs on it in the meantime.
fn replace_files(from: &Path, to: &Path) {
    for file in std::fs::read_dir(to).expect("a directory") {
        std::fs::remove_file(file.expect("a file").path()).expect("removable");
    }
    for file in std::fs::read_dir(from).expect("a directory") {
        let file = file.expect("a file");
        std::fs::copy(file.path(), to.join(file.file_name())).expect("copied");
    }
}

#[test]
fn changes_and_deletions_since_the_backup_survive_a_restore() {
    let mut cluster = Cluster::started(3);
    for number in 0..8 {
        let node = &cluster.nodes[number % 3];
        assert_eq!(node.create(&format!("k{number}"), "\"old\"").status, 201);
    }
    cluster.wait_until_equal();
    cluster.wait_until_whole();
    let backup = tempfile::tempdir().expect("temporary directory");
    cluster.nodes[2].stop();
    replace_files(cluster.nodes[2].directory.path(), backup.path());
    cluster.nodes[2].start();

    for (number, node) in [(0, 0), (1, 1), (2, 0)] {
        assert_eq!(cluster.nodes[node].update(&format!("k{number}"), "\"new\"").status, 200);
    }
    for (number, node) in [(3, 1), (5, 0)] {
        assert_eq!(cluster.nodes[node].delete(&format!("k{number}")).status, 200);
    }
    // The restore loses the node's local changes; its peers return those that have replicated.
    cluster.wait_until_whole();
    assert_eq!(cluster.nodes[2].update("k6", "\"own\"").status, 200);
    assert_eq!(cluster.nodes[2].delete("k7").status, 200);
    cluster.wait_for("k6", Some("\"own\""));
    cluster.wait_for("k7", None);
    cluster.wait_until_equal();
    let digest = cluster.nodes[0].digest();

    cluster.nodes[2].stop();
    replace_files(backup.path(), cluster.nodes[2].directory.path());
    cluster.nodes[2].start();
    let expected = [
        ("k0", Some("\"new\"")),
        ("k1", Some("\"new\"")),
        ("k2", Some("\"new\"")),
        ("k3", None),
        ("k4", Some("\"old\"")),
        ("k5", None),
        ("k6", Some("\"own\"")),
        ("k7", None),
    ];
    cluster.wait_until_equal();
    assert_eq!(cluster.nodes[2].digest(), digest, "the newer state wins");
    for (key, value) in expected {
        for node in &cluster.nodes {
            assert_eq!(node.value(key).as_deref(), value, "{key}");
        }
    }
    // New writes are newer than the writes that the restore lost.
    cluster.wait_until_whole();
    assert_eq!(cluster.nodes[2].update("k6", "\"again\"").status, 200);
    cluster.wait_for("k6", Some("\"again\""));
    assert_eq!(cluster.nodes[2].create("k7", "\"again\"").status, 201);
    cluster.wait_for("k7", Some("\"again\""));
}

/// Backdates a timestamp in the metadata of a database on which no node runs.
fn set_in_database(database: &Path, name: &str, age: Duration) {
    let at = UNIX_EPOCH.elapsed().expect("after 1970") - age;
    let timestamp = i64::try_from(at.as_millis() << 16).expect("48 bits of milliseconds");
    let connection = rusqlite::Connection::open(database).expect("the database opens");
    let sql = "INSERT OR REPLACE INTO osc_meta (name, value) VALUES (?1, ?2)";
    connection.execute(sql, (name, timestamp)).expect("writable");
}

#[test]
fn backup_older_than_the_tombstone_retention_window_is_refused() {
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    let mut cluster = Cluster::started(2);
    for key in ["deleted", "kept"] {
        assert_eq!(cluster.nodes[0].create(key, "1").status, 201);
    }
    cluster.wait_until_equal();
    cluster.wait_until_whole();
    cluster.nodes[1].stop();
    assert_eq!(cluster.nodes[0].delete("deleted").status, 200);
    cluster.nodes[0].stop();
    // The deletion was long ago, and the data of node 1 predates it.
    let database = cluster.nodes[0].path("configurations.db");
    set_in_database(&database, "forgotten", DAY * 10);
    let connection = rusqlite::Connection::open(&database).expect("the database opens");
    let removed = connection.execute("DELETE FROM osc_versions WHERE digest IS NULL", []);
    assert_eq!(removed.expect("deleted"), 1);
    drop(connection);
    set_in_database(&cluster.nodes[1].path("configurations.db"), "synced", DAY * 11);

    cluster.start();
    for (node, whose) in [(0, "its data"), (1, "this node's data")] {
        within(CONVERGENCE, "the peer is refused", || cluster.nodes[node].states()[0].0 == "refused");
        let reason = &cluster.nodes[node].states()[0].1;
        assert!(reason.starts_with(whose) && reason.contains("rejoin"), "{reason}");
    }
    assert!(cluster.nodes[0].is_ready(), "an old backup on one node must not make the other nodes unready");
    assert!(!cluster.nodes[1].is_ready());
    assert_eq!(cluster.nodes[0].value("deleted"), None);
    // Wipes the data directory, as the reason demands.
    cluster.nodes[1].stop();
    for file in std::fs::read_dir(cluster.nodes[1].directory.path()).expect("a directory") {
        std::fs::remove_file(file.expect("a file").path()).expect("removable");
    }
    cluster.nodes[1].start();
    cluster.wait_until_whole();
    cluster.wait_for("kept", Some("1"));
    cluster.wait_for("deleted", None);
}
