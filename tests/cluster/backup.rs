//! An old backup that is put back.

use std::path::Path;

use crate::nodes::Cluster;

/// All files, with whatever belongs to the database beside it; no node runs there meanwhile.
fn replace_files(from: &Path, to: &Path) {
    for file in std::fs::read_dir(to).expect("it is there") {
        std::fs::remove_file(file.expect("a file").path()).expect("it can be removed");
    }
    for file in std::fs::read_dir(from).expect("it is there") {
        let file = file.expect("a file");
        std::fs::copy(file.path(), to.join(file.file_name())).expect("it can be copied");
    }
}

#[test]
fn what_was_changed_and_deleted_since_the_backup_stays_so() {
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
    // Its own change is lost with its files, unless another node has it: they give it back.
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
    assert_eq!(cluster.nodes[2].digest(), digest, "the newer state is the one that stays");
    for (key, value) in expected {
        for node in &cluster.nodes {
            assert_eq!(node.value(key).as_deref(), value, "{key}");
        }
    }
    // What it writes now is newer than what it wrote in the life that it has forgotten.
    cluster.wait_until_whole();
    assert_eq!(cluster.nodes[2].update("k6", "\"again\"").status, 200);
    cluster.wait_for("k6", Some("\"again\""));
    assert_eq!(cluster.nodes[2].create("k7", "\"again\"").status, 201);
    cluster.wait_for("k7", Some("\"again\""));
}
