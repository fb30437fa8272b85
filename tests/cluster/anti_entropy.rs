//! Cost of anti-entropy between two large stores that are equal or differ in one entry.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use rusqlite::Connection;

use crate::nodes::{CONVERGENCE, Cluster, within};
use crate::support::{Launch, copy_files};

const ENTRIES_COUNT: usize = 100_000;
/// Maximum traffic of the anti-entropy rounds between equal stores.
const ROUND_BYTES_MAX: usize = 64 * 1024;

/// Adds entries as another program would. No key decrypts them, which does not matter to nodes that compare and
/// forward sealed values.
fn insert_entries(database: &Path) {
    let mut connection = Connection::open(database).expect("the database opens");
    let transaction = connection.transaction().expect("no other writer");
    {
        let sql = r#"INSERT INTO configurations ("key", encrypted_value) VALUES (?1, ?2)"#;
        let mut statement = transaction.prepare(sql).expect("the table exists");
        for number in 0..ENTRIES_COUNT {
            // The length of a token, because nodes forward nothing else.
            let token: Vec<u8> = [0x80].into_iter().chain(number.to_be_bytes().repeat(9)).collect();
            statement.execute((format!("service/{number}"), URL_SAFE.encode(token))).expect("inserted");
        }
    }
    transaction.commit().expect("committed");
}

fn delete_entry(database: &Path, key: &str) {
    let connection = rusqlite::Connection::open(database).expect("the database opens");
    let removed = connection.execute(r#"DELETE FROM configurations WHERE "key" = ?1"#, [key]);
    assert_eq!(removed.expect("deleted"), 1);
}

/// Creates two nodes with the same entries, neither of which has been in a cluster before.
fn two_large_nodes() -> Cluster {
    let cluster = Cluster::of(2);
    let mut alone = Launch::at(Arc::clone(&cluster.nodes[0].directory)).start();
    assert_eq!(alone.create("one-of-all", "1").status, 201);
    assert!(alone.stop().success());
    insert_entries(&cluster.nodes[0].path("configurations.db"));
    let (from, to) = (cluster.nodes[0].path(""), cluster.nodes[1].path(""));
    copy_files(&from, &to, &["configurations.db", "encryption.salt"]);
    cluster
}

fn transferred_bytes(cluster: &Cluster) -> usize {
    cluster.links.iter().map(|(.., link)| link.passed().len()).sum()
}

/// Waits until each node has run at least two anti-entropy rounds since the start and is in sync with its peer.
fn wait_for_two_rounds(cluster: &Cluster) {
    within(CONVERGENCE, "both nodes have run two anti-entropy rounds", || {
        cluster.links.iter().all(|(.., link)| link.requests("/cluster/digests") >= 2)
            && cluster.nodes.iter().all(|node| node.report()["members"][0]["synced_ms"].is_u64())
    });
}

#[test]
fn equal_stores_exchange_few_bytes() {
    let mut cluster = two_large_nodes();
    cluster.start();
    wait_for_two_rounds(&cluster);
    let digest = cluster.nodes[0].digest();
    assert_eq!(digest, cluster.nodes[1].digest());
    let rounds: usize = cluster.links.iter().map(|(.., link)| link.requests("/cluster/digests")).sum();
    // Includes the health checks of the start and the heads of all requests and responses.
    let bytes = transferred_bytes(&cluster);
    assert!(bytes < ROUND_BYTES_MAX, "{bytes} bytes in {rounds} rounds");
    assert_eq!(cluster.requests("/cluster/versions"), 0);
}

#[test]
fn one_differing_entry_costs_few_more_bytes() {
    let mut cluster = two_large_nodes();
    delete_entry(&cluster.nodes[1].path("configurations.db"), "service/77");
    cluster.start();
    wait_for_two_rounds(&cluster);
    cluster.wait_until_equal();
    assert_eq!(cluster.nodes[0].report()["members"][0]["digest"], cluster.nodes[1].digest());
    let bytes = transferred_bytes(&cluster);
    assert!(bytes < 2 * ROUND_BYTES_MAX, "{bytes} bytes for one entry");
    assert!(cluster.requests("/cluster/versions") > 0, "anti-entropy found the entry");
}

/// The digests of a large store are computed while it serves, also after an unclean shutdown.
#[test]
fn large_store_syncs_after_kill_9() {
    const TIMEOUT: Duration = Duration::from_secs(180);
    let mut cluster = Cluster::started(2);
    // Settles the salt.
    assert_eq!(cluster.nodes[0].create("k", "1").status, 201);
    cluster.wait_until_equal();
    cluster.nodes[0].stop();
    let database = Connection::open(cluster.nodes[0].path("configurations.db")).expect("the database opens");
    let insert = r#"PRAGMA synchronous=OFF;
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 9000)
        INSERT INTO configurations ("key", encrypted_value) SELECT 'filler-' || i, 'gA' || hex(zeroblob(4485)) FROM n;
        PRAGMA wal_checkpoint(TRUNCATE);"#;
    database.execute_batch(insert).expect("valid");
    drop(database);
    let bytes = std::fs::metadata(cluster.nodes[0].path("configurations.db")).expect("a database").len();
    assert!(bytes > opensecureconf::limits::CHECK_AT_START_BYTES_MAX, "{bytes}");
    cluster.nodes[0].start();
    cluster.wait_until_equal_within(TIMEOUT);
    for number in 0..20 {
        assert_eq!(cluster.nodes[0].create(&format!("k{number}"), "1").status, 201);
    }
    cluster.nodes[0].kill();
    assert_eq!(cluster.nodes[1].create("meanwhile", "1").status, 201);
    cluster.nodes[0].start();
    assert_eq!(cluster.nodes[0].update("k", "2").status, 200);
    cluster.wait_until_equal_within(TIMEOUT);
    cluster.wait_for("k", Some("2"));
    cluster.wait_for("k19", Some("1"));
    cluster.wait_for("meanwhile", Some("1"));
}
