//! Lists whose pages come from different nodes, as behind a load balancer.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use crate::nodes::Cluster;

const STAYING_COUNT: usize = 90;
const ENVIRONMENTS: [Option<&str>; 3] = [None, Some("dev"), Some("prod")];

/// Name of an entry as it is listed: environment and key.
type Name = (Option<String>, String);

fn create(cluster: &Cluster, node: usize, key: &str, environment: Option<&str>) {
    let body = serde_json::json!({ "key": key, "value": 1, "environment": environment }).to_string();
    let created = cluster.nodes[node].ask("POST", "/configs", Some(&body));
    assert_eq!(created.status, 201, "{}", created.text());
}

fn staying() -> Vec<Name> {
    let names = (0..STAYING_COUNT)
        .map(|number| (ENVIRONMENTS[number % 3].map(str::to_owned), format!("k{:03}-stays", number / 3)));
    names.collect()
}

/// Takes the pages of a list from one node after the other, and returns the names in the order of the list.
fn pages_from_all(cluster: &Cluster, filter: &str, limit: usize) -> Vec<Name> {
    let (mut names, mut after) = (Vec::new(), String::new());
    for node in cluster.nodes.iter().cycle() {
        // With the environment in the query, it is among the fields of each entry.
        let page = node.ask("GET", &format!("/configs?limit={limit}{filter}{after}&mode=full"), None);
        assert_eq!(page.status, 200, "{}", page.text());
        assert!(!page.headers.contains_key("x-partial-result"), "{:?}", page.headers);
        let entries: Vec<serde_json::Value> = serde_json::from_slice(&page.body).expect("a list");
        names.extend(entries.iter().map(|entry| {
            let text = |field: &str| entry[field].as_str().map(str::to_owned);
            (text("environment"), text("key").expect("a key"))
        }));
        match page.headers.get("x-next-after") {
            Some(next) => after = format!("&after={next}"),
            None => break,
        }
    }
    names
}

/// Stops the writers, also after a failed assertion.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Entries that exist throughout are listed exactly once, and in order, whichever nodes the pages come from and whatever
/// is written in the meantime.
fn lists_are_continued_by_any_node(cluster: &Cluster) {
    let (is_over, writes_count) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        for writer in 0..cluster.nodes.len() {
            let (is_over, writes_count) = (&is_over, &writes_count);
            scope.spawn(move || {
                for step in 0.. {
                    if is_over.load(Ordering::Relaxed) {
                        return;
                    }
                    let (key, environment) =
                        (format!("k{:03}-comes-{writer}-{step}", step * 7 % 30), ENVIRONMENTS[step % 3]);
                    create(cluster, writer, &key, environment);
                    let query = environment.map(|name| format!("?environment={name}")).unwrap_or_default();
                    let deleted =
                        cluster.nodes[writer].ask("DELETE", &format!("/configs/{key}{query}"), None);
                    assert_eq!(deleted.status, 200, "{}", deleted.text());
                    writes_count.fetch_add(2, Ordering::Relaxed);
                }
            });
        }
        let _stop = Stop(&is_over);
        let mut expected = staying();
        expected.sort();
        for limit in [2, 7, 50] {
            // A short list is repeated until something was written in the meantime.
            let before = writes_count.load(Ordering::Relaxed);
            while writes_count.load(Ordering::Relaxed) < before + 10 {
                let names = pages_from_all(cluster, "", limit);
                assert!(names.is_sorted_by(|one, next| one < next), "limit {limit}: {names:?}");
                let found: Vec<Name> = names.into_iter().filter(|(_, key)| key.ends_with("-stays")).collect();
                assert_eq!(found, expected, "limit {limit}");
            }
        }
    });
    for (filter, expected) in
        [("&environment=dev", 30), ("&prefix=k00", 30), ("&environment=prod&prefix=k01", 10)]
    {
        for limit in [4, 10, 100] {
            let names = pages_from_all(cluster, filter, limit);
            assert!(names.is_sorted_by(|one, next| one < next), "{filter}: {names:?}");
            assert_eq!(names.len(), expected, "{filter}, limit {limit}");
        }
    }
}

fn replicas(store: &str) {
    let mut cluster = Cluster::of(3);
    cluster.nodes.iter_mut().for_each(|node| node.set("OSC_STORE", store));
    cluster.start();
    cluster.wait_until_whole();
    // The nodes create different entries first, so the ids differ.
    thread::scope(|scope| {
        for node in 0..3 {
            let cluster = &cluster;
            scope.spawn(move || {
                let all = staying().into_iter().enumerate().filter(|(index, _)| index % 7 % 3 == node);
                all.for_each(|(_, (environment, key))| create(cluster, node, &key, environment.as_deref()));
            });
        }
    });
    cluster.wait_until_equal();
    let ids = |node: usize| {
        let list = cluster.nodes[node].ask("GET", "/configs?mode=full", None);
        let list: Vec<serde_json::Value> = serde_json::from_slice(&list.body).expect("a list");
        let ids = list.iter().map(|entry| {
            ((entry["environment"].to_string(), entry["key"].to_string()), entry["id"].to_string())
        });
        ids.collect::<BTreeMap<_, _>>()
    };
    assert_ne!(ids(0), ids(1));
    lists_are_continued_by_any_node(&cluster);
}

#[test]
fn lists_of_replicas_are_continued_by_any_node() {
    replicas("sqlite");
}

#[test]
fn lists_of_replicas_in_memory_are_continued_by_any_node() {
    replicas("memory");
}

#[test]
fn lists_of_a_federation_are_continued_by_any_node() {
    let mut cluster = Cluster::of(3);
    cluster.nodes.iter_mut().for_each(|node| node.set("OSC_CLUSTER_MODE", "federated"));
    cluster.start();
    cluster.wait_until_whole();
    for (index, (environment, key)) in staying().into_iter().enumerate() {
        create(&cluster, index % 7 % 3, &key, environment.as_deref());
        if index % 10 == 0 {
            // Two nodes have the entry; it is listed once.
            create(&cluster, (index % 7 + 1) % 3, &key, environment.as_deref());
        }
    }
    lists_are_continued_by_any_node(&cluster);
}
