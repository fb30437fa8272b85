//! What an eavesdropper between the nodes can read.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

use crate::nodes::{API_KEY, CONVERGENCE, Cluster, ask, within};
use crate::support::{Launch, PATIENCE, USER_KEY};

/// Returns the encodings of a canary to search for: verbatim, in hexadecimal, and the part of its base64 form that does
/// not depend on adjacent bytes, for each of the three alignments.
pub(crate) fn forms(canary: &str) -> Vec<Vec<u8>> {
    let mut forms = vec![canary.as_bytes().to_vec()];
    forms.push(canary.bytes().map(|byte| format!("{byte:02x}")).collect::<String>().into_bytes());
    for skipped in 0..3 {
        let whole = (canary.len() - skipped) / 3 * 3;
        let part = &canary.as_bytes()[skipped..skipped + whole];
        forms.push(STANDARD_NO_PAD.encode(part).into_bytes());
        forms.push(URL_SAFE_NO_PAD.encode(part).into_bytes());
    }
    forms
}

pub(crate) fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

#[test]
fn no_keys_secrets_or_values_pass_between_nodes() {
    let secret = "canary-of-the-secret-of-all-nodes";
    let mut cluster = Cluster::of(3);
    for node in &mut cluster.nodes {
        node.set("OSC_CLUSTER_SECRET", secret);
    }
    cluster.nodes[0].start();
    cluster.nodes[1].start();
    let mut canaries = vec![secret.to_owned(), API_KEY.to_owned()];
    for index in 0..3 {
        if index == 2 {
            // The node has missed all writes, so that entries pass by anti-entropy as well as by push.
            cluster.nodes[2].start();
        }
        let user_key = format!("canary-of-a-user-key-{index}");
        let address = cluster.nodes[index].place.get().expect("the node is running");
        let (first, second) = (format!("canary-of-a-value-{index}"), format!("canary-of-an-update-{index}"));
        let create = format!(r#"{{"key":"entry-{index}","value":{{"text":"{first}"}}}}"#);
        let update = format!(r#"{{"value":{{"text":"{second}"}}}}"#);
        for (method, target, body, status) in [
            ("POST", "/configs".to_owned(), &create, 201),
            ("PUT", format!("/configs/entry-{index}"), &update, 200),
        ] {
            let response =
                ask(address, PATIENCE, method, &target, &user_key, Some(body)).expect("the node responds");
            assert_eq!(response.status, status, "{response:?}");
        }
        canaries.extend([user_key, first, second]);
    }
    cluster.wait_until_equal();
    cluster.wait_until_whole();
    for target in
        ["/cluster/health", "/cluster/changes", "/cluster/digests", "/cluster/versions", "/cluster/entries"]
    {
        assert!(cluster.requests(target) > 0, "{target} was not called, so the test does not cover it");
    }
    let passed: Vec<u8> = cluster.links.iter().flat_map(|(.., link)| link.passed()).collect();
    // Proves that the recording works.
    assert!((0..3).all(|index| contains(&passed, format!("entry-{index}").as_bytes())));
    for canary in &canaries {
        for form in forms(canary) {
            assert!(!contains(&passed, &form), "{canary} passes as {}", String::from_utf8_lossy(&form));
        }
    }
}

/// Values are not parsed between nodes, and must not be reformatted.
#[test]
fn numbers_keep_their_spelling_on_all_nodes() {
    const VALUE: &str = r#"{"t":1749667779000,"n":123456789012345678901234567890,"z":-0,"e":81111e1,"f":1.0,"b":1,"a":0.1000}"#;
    for mode in ["replica", "federated"] {
        let mut cluster = Cluster::of(3);
        for node in &mut cluster.nodes {
            node.set("OSC_CLUSTER_MODE", mode);
        }
        cluster.start();
        cluster.wait_until_whole();
        assert_eq!(cluster.nodes[0].create("numbers", "0").status, 201, "{mode}");
        cluster.wait_for("numbers", Some("0"));
        let changed = cluster.nodes[1].update("numbers", VALUE);
        assert_eq!(changed.status, 200, "{mode}: {changed:?}");
        assert!(changed.text().contains(VALUE), "{mode}: {}", changed.text());
        within(CONVERGENCE, mode, || {
            let target = "/configs/numbers";
            cluster.nodes.iter().all(|node| node.ask("GET", target, None).text().contains(VALUE))
        });
        for node in &cluster.nodes {
            assert!(node.ask("GET", "/configs", None).text().contains(VALUE), "{mode}");
        }
    }
}

#[test]
fn a_response_is_in_the_version_of_its_request() {
    let launch = Launch::new().set("OSC_CLUSTER_ENABLED", "true").set("OSC_CLUSTER_MODE", "federated");
    let server = launch.start();
    let mut client = server.connect();
    let created =
        client.send("POST", "/configs", &[("X-User-Key", USER_KEY)], Some(br#"{"key":"k","value":1}"#));
    assert_eq!(created.status, 201, "{created:?}");
    let mut find = |version: Option<&str>| {
        let headers: Vec<_> = version.map(|version| ("X-OSC-Protocol", version)).into_iter().collect();
        client.send("POST", "/cluster/find", &headers, Some(br#"{"key":"k"}"#))
    };
    for (version, expected) in [
        (None, r#"{"i":1,"k":"k","t":""#),
        (Some("1"), r#"{"i":1,"k":"k","t":""#),
        (Some("2"), r#"{"id":1,"key":"k","ciphertext":""#),
    ] {
        let found = find(version);
        assert!(found.status == 200 && found.text().contains(expected), "{version:?}: {found:?}");
    }
    for version in ["0", "3", "two", ""] {
        let refused = find(Some(version));
        assert_eq!(refused.status, 400, "{version}: {refused:?}");
        assert!(refused.text().contains("this node supports 1 and 2"), "{refused:?}");
    }
    // A health check announces what the sender supports, which may be more than this node knows.
    let health = client.send("GET", "/cluster/health", &[("X-OSC-Protocol", "3")], None);
    assert_eq!(health.status, 200, "{health:?}");
    let salt = client.send("GET", "/cluster/salt", &[("X-OSC-Protocol", "3")], None);
    assert_eq!(salt.status, 400, "{salt:?}");
}
