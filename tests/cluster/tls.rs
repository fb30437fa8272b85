//! Mutual TLS between nodes.

use crate::certificates::{Authority, Issued, put};
use crate::nodes::{CONVERGENCE, Cluster, Node, within};

/// Installs a certificate on a node, and the CA by which it verifies peers and clients.
fn equip(node: &mut Node, issued: &Issued, authority: &Authority) {
    let directory = node.directory.path();
    issued.write(directory);
    put(directory, "ca.pem", &authority.certificate);
    for (name, value) in [
        ("OSC_HTTPS_ENABLED", "true"),
        ("OSC_SSL_CERTFILE", "cert.pem"),
        ("OSC_SSL_KEYFILE", "key.pem"),
        ("OSC_SSL_CA_CERTS", "ca.pem"),
    ] {
        node.set(name, value);
    }
    node.tls = Some(authority.client(Some(issued)));
}

fn cluster_of(count: usize, authority: &Authority, settings: &[(&str, &str)]) -> Cluster {
    let mut cluster = Cluster::of(count);
    for node in &mut cluster.nodes {
        equip(node, &authority.issue(), authority);
        settings.iter().for_each(|(name, value)| node.set(name, value));
    }
    cluster
}

#[test]
fn replicas_converge_and_a_certificate_of_an_unknown_ca_is_refused() {
    for engine in ["auto", "epoll"] {
        let authority = Authority::new("of the cluster");
        let mut cluster = cluster_of(3, &authority, &[("OSC_ENGINE", engine)]);
        cluster.start();
        cluster.wait_until_whole();
        for (index, node) in cluster.nodes.iter().enumerate() {
            assert_eq!(
                node.create(&format!("k{index}"), &format!("\"{}\"", "v".repeat(500_000))).status,
                201
            );
        }
        for index in 0..3 {
            cluster.wait_for(&format!("k{index}"), Some(&format!("\"{}\"", "v".repeat(500_000))));
        }
        cluster.wait_until_equal();

        // The node still verifies its peers by the common CA, so only its own certificate is wrong.
        cluster.nodes[2].stop();
        let other_authority = Authority::new("of another organisation");
        other_authority.issue().write(cluster.nodes[2].directory.path());
        let both = format!("{}{}", authority.certificate, other_authority.certificate);
        cluster.nodes[2].tls = Some(crate::certificates::client(&both, Some(&authority.issue())));
        cluster.nodes[2].start();
        within(CONVERGENCE, "the node is refused and reports it", || {
            let refused = |reason: &str| ("refused".to_owned(), reason.to_owned());
            let here = refused("its certificate was not issued by a CA that this node trusts");
            let there = refused("it does not accept this node's certificate");
            cluster.nodes[..2].iter().all(|node| node.states().contains(&here))
                && cluster.nodes[2].states() == [there.clone(), there]
        });
        assert!(cluster.nodes[0].is_ready() && cluster.nodes[1].is_ready(), "the other nodes keep serving");
        assert_eq!(cluster.nodes[0].update("k0", "1").status, 200);
        within(CONVERGENCE, "the other nodes replicate", || {
            cluster.nodes[1].value("k0").as_deref() == Some("1")
        });
        assert_ne!(cluster.nodes[2].value("k0").as_deref(), Some("1"));

        // With a valid certificate it rejoins without a restart.
        authority.issue().write(cluster.nodes[2].directory.path());
        cluster.wait_until_whole();
        cluster.wait_for("k0", Some("1"));
    }
}

#[test]
fn two_federated_nodes_query_each_other() {
    for engine in ["auto", "epoll"] {
        let authority = Authority::new("of the federation");
        let mut cluster =
            cluster_of(2, &authority, &[("OSC_CLUSTER_MODE", "federated"), ("OSC_ENGINE", engine)]);
        cluster.start();
        cluster.wait_until_whole();
        cluster.expect_federation();
    }
}

/// Nodes move to another CA without an interruption of replication.
#[test]
fn certificates_and_ca_are_rotated_without_a_restart() {
    let old = Authority::new("old");
    let new = Authority::new("new");
    let mut cluster = cluster_of(2, &old, &[]);
    cluster.start();
    cluster.wait_until_whole();
    let both = format!("{}{}", old.certificate, new.certificate);
    for node in &mut cluster.nodes {
        put(node.directory.path(), "ca.pem", &both);
    }
    let wait_for_reload = |node: &Node, times| {
        within(CONVERGENCE, "the new certificates are in use", || {
            node.log().matches("certificates reloaded").count() == times
        });
    };
    cluster.nodes.iter().for_each(|node| wait_for_reload(node, 1));
    for node in &mut cluster.nodes {
        let issued = new.issue();
        issued.write(node.directory.path());
        node.tls = Some(crate::certificates::client(&both, Some(&issued)));
    }
    cluster.nodes.iter().for_each(|node| wait_for_reload(node, 2));
    // From now on no node accepts certificates of the old CA.
    for node in &mut cluster.nodes {
        put(node.directory.path(), "ca.pem", &new.certificate);
    }
    cluster.nodes.iter().for_each(|node| wait_for_reload(node, 3));
    assert_eq!(cluster.nodes[0].create("k", "1").status, 201);
    cluster.wait_for("k", Some("1"));
    cluster.wait_until_equal();
    for node in &cluster.nodes {
        assert!(!node.log().contains("no replication"), "{}", node.log());
    }
}

#[test]
fn certificate_without_the_name_of_the_node_is_refused() {
    let authority = Authority::new("of the cluster");
    let mut cluster = cluster_of(2, &authority, &[]);
    let elsewhere = authority.issue_with(|params| {
        params.subject_alt_names = vec![
            rcgen::SanType::DnsName("node.example.org".try_into().expect("a name")),
            rcgen::SanType::DnsName("localhost".try_into().expect("a name")),
        ];
    });
    equip(&mut cluster.nodes[1], &elsewhere, &authority);
    cluster.start();
    within(CONVERGENCE, "the peer is refused", || {
        cluster.nodes[0].states()
            == [(
                "refused".to_owned(),
                "its certificate is not valid for its name in OSC_CLUSTER_NODES".to_owned(),
            )]
    });
}

/// A node that does not serve TLS can connect to peers that do, and verifies them by the file of their CA.
#[test]
fn plaintext_node_replicates_with_a_tls_node() {
    let authority = Authority::new("of the cluster");
    let mut cluster = Cluster::of(2);
    let issued = authority.issue();
    issued.write(cluster.nodes[1].directory.path());
    cluster.nodes[1].tls = Some(authority.client(None));
    let links: Vec<String> =
        [(0, 1), (1, 0)].iter().map(|(from, to)| cluster.link(*from, *to).address.to_string()).collect();
    cluster.nodes[0].set("OSC_CLUSTER_NODES", &format!("https://{}", links[0]));
    cluster.nodes[1].set("OSC_CLUSTER_NODES", &format!("http://{}", links[1]));
    put(cluster.nodes[0].directory.path(), "peers.pem", &authority.certificate);
    cluster.nodes[0].set("OSC_CLUSTER_CA_CERTS", "peers.pem");
    for (name, value) in
        [("OSC_HTTPS_ENABLED", "true"), ("OSC_SSL_CERTFILE", "cert.pem"), ("OSC_SSL_KEYFILE", "key.pem")]
    {
        cluster.nodes[1].set(name, value);
    }
    cluster.start();
    cluster.wait_until_whole();
    assert_eq!(cluster.nodes[0].create("k", "1").status, 201);
    cluster.wait_for("k", Some("1"));
}

/// The TLS files for peers were not read at the start, when there were no peers.
#[test]
fn first_peers_are_added_at_runtime() {
    let authority = Authority::new("of the cluster");
    let mut cluster = cluster_of(2, &authority, &[]);
    let peers: Vec<String> = cluster.links.iter().map(|(.., link)| link.address.to_string()).collect();
    for node in &mut cluster.nodes {
        node.forget("OSC_CLUSTER_NODES");
        std::fs::write(node.path("encryption.salt"), crate::support::proper_salt(7)).expect("writable");
    }
    cluster.start();
    assert_eq!(cluster.nodes[0].create("k", "1").status, 201);
    for (node, peer) in cluster.nodes.iter().zip(peers) {
        put(node.directory.path(), ".env", &format!("OSC_CLUSTER_NODES={peer}\n"));
        node.signal("HUP");
    }
    cluster.wait_until_whole();
    cluster.wait_for("k", Some("1"));
}
