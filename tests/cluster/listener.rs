//! A dedicated listener for peers: `OSC_CLUSTER_LISTEN`.

use std::io::Write;
use std::net::{SocketAddr, TcpListener};

use crate::nodes::{CONVERGENCE, Cluster, Node, ask, within};
use crate::support::{Client, Launch, PATIENCE, Response, USER_KEY};

/// A PROXY protocol header, version 2, that names 203.0.113.9 as the client.
const PROXY_HEADER: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xcb\x00\x71\x09\x7f\0\0\x01\x11\x22\x23\x28";

/// Prefix of the identity headers of `/cluster/health`.
const IDENTITY_PREFIX: &str = "x-osc-";

fn cluster_of(count: usize, settings: &[(&str, &str)]) -> Cluster {
    let mut cluster = Cluster::of(count);
    for node in &mut cluster.nodes {
        node.set("OSC_CLUSTER_LISTEN", "127.0.0.1:0");
        settings.iter().for_each(|(name, value)| node.set(name, value));
    }
    cluster
}

fn send(address: SocketAddr, method: &str, target: &str) -> Response {
    ask(address, PATIENCE, method, target, USER_KEY, Some("{}")).expect("the node responds")
}

#[test]
fn each_listener_serves_its_own_endpoints() {
    for engine in ["auto", "epoll"] {
        let mut cluster = cluster_of(1, &[("OSC_ENGINE", engine)]);
        cluster.start();
        let node = &cluster.nodes[0];
        within(CONVERGENCE, "the node is ready", || node.is_ready());
        let for_clients = node.place.get().expect("the node is running");
        let for_peers = node.place_for_peers.get().expect("the node is running");
        assert_ne!(for_clients, for_peers);

        for target in ["changes", "digests", "versions", "entries", "find", "page", "write"] {
            let target = format!("/cluster/{target}");
            for method in ["POST", "GET"] {
                let refused = send(for_clients, method, &target);
                assert_eq!((refused.status, refused.text()), (404, r#"{"detail":"Not Found"}"#), "{target}");
                assert_ne!(send(for_peers, method, &target).text(), refused.text(), "{target}");
            }
        }
        for target in
            ["/configs", "/configs/k", "/", "/metrics", "/docs", "/openapi.json", "/v1/cluster/members"]
        {
            for method in ["GET", "PUT"] {
                let refused = send(for_peers, method, target);
                assert_eq!((refused.status, refused.text()), (404, r#"{"detail":"Not Found"}"#), "{target}");
                assert_ne!(send(for_clients, method, target).text(), refused.text(), "{target}");
            }
        }
        for target in ["/health", "/ready", "/cluster/health"] {
            for address in [for_clients, for_peers] {
                assert_eq!(send(address, "GET", target).status, 200, "{target} {address}");
            }
        }
        let health = send(for_clients, "GET", "/cluster/health");
        assert!(!health.headers.keys().any(|name| name.starts_with(IDENTITY_PREFIX)), "{health:?}");
        assert_eq!(node.create("k", "1").status, 201);
        let log = node.log();
        for (address, serves) in [(for_clients, "serves=\"clients\""), (for_peers, "serves=\"peers\"")] {
            let line =
                log.lines().find(|line| line.contains("listening") && line.contains(&address.to_string()));
            assert!(line.is_some_and(|line| line.contains(serves)), "{log}");
        }
    }
}

#[test]
fn salt_is_for_peers_only_and_a_peer_listed_by_its_client_port_is_refused() {
    let mut cluster = cluster_of(2, &[("OSC_CLUSTER_SECRET", "a-secret-of-nodes-0123456789abcdef")]);
    let to_client_port = crate::link::Link::to(cluster.nodes[1].place.clone());
    cluster.nodes[0].set("OSC_CLUSTER_NODES", &to_client_port.address.to_string());
    for node in &cluster.nodes {
        std::fs::write(node.path("encryption.salt"), (0..64).collect::<Vec<u8>>()).expect("writable");
    }
    cluster.start();
    let expected = "it serves peers on another port (its OSC_CLUSTER_LISTEN)";
    within(CONVERGENCE, "the peer is refused", || {
        cluster.nodes[0].states() == [("refused".to_owned(), expected.to_owned())]
    });
    within(CONVERGENCE, "both nodes are ready", || cluster.nodes.iter().all(Node::is_ready));
    let place = |place: &crate::link::Place| place.get().expect("the node is running");
    for method in ["GET", "POST"] {
        let refused = send(place(&cluster.nodes[0].place), method, "/cluster/salt");
        assert_eq!((refused.status, refused.text()), (404, r#"{"detail":"Not Found"}"#), "{method}");
        let refused = send(place(&cluster.nodes[0].place_for_peers), method, "/cluster/salt");
        assert_eq!(refused.status, 403, "{method}: {refused:?}");
    }
}

#[test]
fn replication_bypasses_client_limits() {
    let mut cluster = cluster_of(
        3,
        &[
            ("OSC_PROXY_PROTOCOL", "true"),
            ("OSC_TRUSTED_PROXIES", "127.0.0.1"),
            ("OSC_CONNECTIONS_PER_ADDRESS", "1"),
        ],
    );
    for node in &mut cluster.nodes {
        node.start();
    }
    let through_proxy = |node: &Node, method: &str, target: &str, body: Option<&str>| {
        let mut client = Client::connect(node.place.get().expect("the node is running"));
        client.stream.write_all(PROXY_HEADER).expect("sent");
        let headers = [("X-API-Key", crate::nodes::API_KEY), ("X-User-Key", USER_KEY)];
        client.send(method, target, &headers, body.map(str::as_bytes))
    };
    within(CONVERGENCE, "all nodes are ready", || {
        cluster.nodes.iter().all(|node| through_proxy(node, "GET", "/ready", None).status == 200)
    });
    let created = through_proxy(&cluster.nodes[0], "POST", "/configs", Some(r#"{"key":"k","value":1}"#));
    assert_eq!(created.status, 201, "{created:?}");
    within(CONVERGENCE, "all nodes have the entry", || {
        cluster.nodes.iter().all(|node| through_proxy(node, "GET", "/configs/k", None).status == 200)
    });
    // The peers keep their connections open, so a limit of one connection per address would lock one of them out.
    let address = cluster.nodes[0].place_for_peers.get().expect("the node is running");
    let mut open: Vec<Client> = (0..4).map(|_| Client::connect(address)).collect();
    for client in &mut open {
        assert_eq!(client.send("GET", "/health", &[], None).status, 200);
    }
}

#[test]
fn federated_nodes_query_peers_over_the_dedicated_listener() {
    let mut cluster = cluster_of(2, &[("OSC_CLUSTER_MODE", "federated")]);
    cluster.start();
    cluster.wait_until_whole();
    cluster.expect_federation();
}

#[test]
fn all_addresses_in_use_are_reported_at_startup() {
    let [one, other] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("a free port"));
    let address = |listener: &TcpListener| listener.local_addr().expect("bound");
    let launch = Launch::new()
        .set("OSC_HOST_PORT", &address(&one).port().to_string())
        .set("OSC_CLUSTER_ENABLED", "true")
        .set("OSC_CLUSTER_LISTEN", &address(&other).to_string());
    let refused = launch.try_start().err().expect("both addresses are in use");
    assert_eq!(refused.status.code(), Some(1));
    let listen = format!("cannot listen on {}: another process is listening", address(&other));
    for part in [listen.as_str(), "(see OSC_CLUSTER_LISTEN)", "(see OSC_HOST and OSC_HOST_PORT)"] {
        assert!(refused.log.contains(part), "{part}: {}", refused.log);
    }
}
