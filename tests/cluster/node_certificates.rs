//! Node certificates: `OSC_CLUSTER_CA_CERTS` names the CAs of nodes only, `OSC_SSL_CA_CERTS` those of clients.

use std::sync::Arc;

use rustls::{ClientConfig, HandshakeKind};

use crate::certificates::{Authority, Issued, TlsClient, client, over_tls, put};
use crate::nodes::{API_KEY, CONVERGENCE, Cluster, Node, within};
use crate::support::{Client, PATIENCE, Response};

const SECRET: &str = "a-secret-of-nodes-0123456789abcdef";
const REQUIRED: &str = "Node certificate required (issued by a CA in OSC_CLUSTER_CA_CERTS)";
const BETWEEN_NODES: [(&str, &str); 6] = [
    ("GET", "/cluster/salt"),
    ("POST", "/cluster/salt"),
    ("POST", "/cluster/changes"),
    ("POST", "/cluster/digests"),
    ("POST", "/cluster/versions"),
    ("POST", "/cluster/entries"),
];

struct Authorities {
    nodes: Authority,
    clients: Authority,
}

impl Authorities {
    fn new() -> Self {
        Self { nodes: Authority::new("of nodes"), clients: Authority::new("of clients") }
    }

    /// Returns a client configuration that verifies nodes and presents this certificate.
    fn client(&self, presented: Option<&Issued>) -> Arc<ClientConfig> {
        self.nodes.client(presented)
    }
}

/// Installs a certificate and the CA files of nodes and clients on a node.
fn equip(node: &mut Node, issued: &Issued, authorities: &Authorities) {
    let directory = node.directory.path();
    issued.write(directory);
    put(directory, "nodes.pem", &authorities.nodes.certificate);
    put(directory, "clients.pem", &authorities.clients.certificate);
    for (name, value) in [
        ("OSC_HTTPS_ENABLED", "true"),
        ("OSC_SSL_CERTFILE", "cert.pem"),
        ("OSC_SSL_KEYFILE", "key.pem"),
        ("OSC_SSL_CA_CERTS", "clients.pem"),
        ("OSC_CLUSTER_CA_CERTS", "nodes.pem"),
        ("OSC_CLUSTER_SECRET", SECRET),
    ] {
        node.set(name, value);
    }
    node.tls = Some(authorities.client(Some(&authorities.clients.issue())));
}

fn cluster_of(count: usize, authorities: &Authorities, settings: &[(&str, &str)]) -> Cluster {
    let mut cluster = Cluster::of(count);
    for node in &mut cluster.nodes {
        equip(node, &authorities.nodes.issue(), authorities);
        settings.iter().for_each(|(name, value)| node.set(name, value));
    }
    cluster
}

fn connect(node: &Node, is_for_peers: bool, config: &Arc<ClientConfig>) -> TlsClient {
    let place = if is_for_peers { &node.place_for_peers } else { &node.place };
    let client = Client::try_connect(place.get().expect("the node is running"), PATIENCE)
        .expect("the node accepts connections");
    over_tls(client.stream, config)
}

fn ask(client: &mut TlsClient, method: &str, target: &str) -> Response {
    let body = (method == "POST").then_some(&b"{}"[..]);
    client.send(method, target, &[("X-API-Key", API_KEY)], body)
}

/// Returns the error of a request on a connection that the server refuses.
fn failure(mut client: TlsClient) -> String {
    use std::io::Write;
    let request = crate::support::request("GET", "/health", &[], None);
    client.stream.write_all(&request).ok();
    client.try_receive(false).expect_err("no response").to_string()
}

#[test]
fn client_certificates_do_not_open_endpoints_between_nodes() {
    for (engine, listen) in [("auto", None), ("epoll", None), ("auto", Some("127.0.0.1:0"))] {
        let authorities = Authorities::new();
        let mut settings = vec![("OSC_ENGINE", engine)];
        settings.extend(listen.map(|listen| ("OSC_CLUSTER_LISTEN", listen)));
        let mut cluster = cluster_of(3, &authorities, &settings);
        cluster.start();
        cluster.wait_until_whole();
        assert_eq!(cluster.nodes[0].create("k", "1").status, 201);
        cluster.wait_for("k", Some("1"));
        cluster.wait_until_equal();

        let node = &cluster.nodes[0];
        let [of_client, of_node] = [&authorities.clients, &authorities.nodes].map(Authority::issue);
        let of_client = authorities.client(Some(&of_client));
        let of_node = authorities.client(Some(&of_node));
        // A resumed session takes the certificate from its ticket.
        for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
            let mut client = connect(node, false, &of_client);
            for (method, target) in BETWEEN_NODES {
                let refused = ask(&mut client, method, target);
                let expected = if listen.is_some() { (404, "Not Found") } else { (403, REQUIRED) };
                assert_eq!((refused.status, &*refused.detail()), expected, "{method} {target}");
            }
            assert_eq!(ask(&mut client, "GET", "/cluster/status").status, 200);
            assert_eq!(client.stream.conn.handshake_kind(), Some(kind));

            // A node certificate without the cluster secret is not sufficient.
            let mut client = connect(node, true, &of_node);
            for (method, target) in BETWEEN_NODES {
                let refused = ask(&mut client, method, target).detail();
                assert_eq!(refused, "This endpoint is for nodes that have the cluster secret", "{target}");
            }
            assert_eq!(client.stream.conn.handshake_kind(), Some(kind));
        }
        if listen.is_some() {
            let alert = failure(connect(node, true, &of_client));
            assert!(alert.contains("UnknownCA"), "{alert}");
        }
        let alert = failure(connect(node, true, &authorities.client(None)));
        assert!(alert.contains("CertificateRequired"), "{alert}");
        assert!(!node.log().contains("OSC_SSL_CERTFILE is not"), "{}", node.log());
    }
}

/// Nodes need a certificate even if clients need none.
#[test]
fn clients_without_certificates_cannot_use_endpoints_between_nodes() {
    let authorities = Authorities::new();
    let mut cluster = cluster_of(2, &authorities, &[]);
    for node in &mut cluster.nodes {
        node.forget("OSC_SSL_CA_CERTS");
        node.tls = Some(authorities.client(None));
    }
    cluster.start();
    cluster.wait_until_whole();
    assert_eq!(cluster.nodes[0].create("k", "1").status, 201);
    cluster.wait_for("k", Some("1"));
    let mut client = connect(&cluster.nodes[0], false, &authorities.client(None));
    for (method, target) in BETWEEN_NODES {
        let refused = ask(&mut client, method, target);
        assert_eq!((refused.status, &*refused.detail()), (403, REQUIRED), "{method} {target}");
    }
}

#[test]
fn node_with_a_client_certificate_is_refused_and_both_sides_report_it() {
    for listen in [None, Some("127.0.0.1:0")] {
        let authorities = Authorities::new();
        let mut cluster = cluster_of(3, &authorities, &[]);
        for node in &mut cluster.nodes {
            if let Some(listen) = listen {
                node.set("OSC_CLUSTER_LISTEN", listen);
            }
        }
        // The test itself verifies this node by either CA.
        let both = format!("{}{}", authorities.nodes.certificate, authorities.clients.certificate);
        let odd = &mut cluster.nodes[2];
        equip(odd, &authorities.clients.issue(), &authorities);
        odd.tls = Some(client(&both, Some(&authorities.clients.issue())));
        cluster.start();
        let expected = match listen {
            None => {
                "it requires a certificate issued by its OSC_CLUSTER_CA_CERTS, which this node has not presented"
            }
            Some(_) => "it does not accept this node's certificate",
        };
        let refused = ("refused".to_owned(), expected.to_owned());
        within(CONVERGENCE, "the odd node is refused and reports it", || {
            cluster.nodes[2].states() == [refused.clone(), refused.clone()]
        });
        let warning = "OSC_SSL_CERTFILE is not a valid node certificate under OSC_CLUSTER_CA_CERTS";
        assert!(cluster.nodes[2].log().contains(warning), "{}", cluster.nodes[2].log());
        let expected_log = match listen {
            None => "node credentials refused",
            Some(_) => "TLS handshake with a peer failed",
        };
        within(CONVERGENCE, "the other nodes log it", || cluster.nodes[0].log().contains(expected_log));
        within(CONVERGENCE, "the other nodes are ready", || cluster.nodes[..2].iter().all(Node::is_ready));
        assert_eq!(cluster.nodes[0].create("k", "1").status, 201);
        within(CONVERGENCE, "the other nodes replicate", || cluster.nodes[1].value("k").is_some());

        // With a node certificate it joins without a restart.
        authorities.nodes.issue().write(cluster.nodes[2].directory.path());
        cluster.wait_until_whole();
        cluster.wait_for("k", Some("1"));
    }
}
