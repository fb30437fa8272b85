//! Certificate and key files: which are accepted, and the errors for those that are not.

use std::path::Path;
use std::process::{Command, Output};

use rcgen::{CertificateParams, KeyPair};

use crate::certificates::{Authority, client, over_tls, put};
use crate::support::Launch;

const PASSWORD: &str = "c4nary-in-the-c0al-mine";

fn launch() -> Launch {
    let launch = Launch::new().set("OSC_HTTPS_ENABLED", "true").set("OSC_SSL_CERTFILE", "cert.pem");
    launch.set("OSC_SSL_KEYFILE", "key.pem")
}

fn check(launch: &Launch) -> Output {
    launch.command().arg("check-config").output().expect("the binary starts")
}

/// Returns the error lines of a refused start.
fn refusal(launch: &Launch) -> Vec<String> {
    let Output { status, stdout, stderr } = check(launch);
    let text = String::from_utf8(stderr).expect("text");
    assert_eq!(status.code(), Some(2), "{text}{}", String::from_utf8_lossy(&stdout));
    assert!(!text.contains(PASSWORD) && !text.contains("panicked"), "{text}");
    text.lines().skip(1).map(str::to_owned).collect()
}

fn openssl(directory: &Path, arguments: &str) {
    let mut command = Command::new("openssl");
    let output =
        command.current_dir(directory).args(arguments.split(' ')).output().expect("openssl is installed");
    assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn keys_of_every_kind_and_format_are_accepted() {
    let pkcs8 = |kind: &str| format!("genpkey {kind} -out key.pem");
    let encrypted =
        |options: &str| format!("pkcs8 -topk8 {options} -passout pass:{PASSWORD} -in plain.pem -out key.pem");
    for commands in [
        vec![pkcs8("-algorithm RSA -pkeyopt rsa_keygen_bits:2048")],
        vec!["genrsa -traditional -out key.pem 2048".to_owned()],
        vec![pkcs8("-algorithm EC -pkeyopt ec_paramgen_curve:P-256")],
        vec!["ecparam -name secp384r1 -genkey -noout -out key.pem".to_owned()],
        // With the parameters before the key.
        vec!["ecparam -name prime256v1 -genkey -out key.pem".to_owned()],
        vec![pkcs8("-algorithm ED25519")],
        vec!["genrsa -out plain.pem 2048".to_owned(), encrypted("-v2 aes-256-cbc")],
        vec!["genrsa -out plain.pem 2048".to_owned(), encrypted("-v2 aes-128-cbc -v2prf hmacWithSHA512")],
        vec!["genpkey -algorithm ED25519 -out plain.pem".to_owned(), encrypted("-scrypt")],
    ] {
        let launch = launch().set("OSC_SSL_KEYFILE_PASSWORD", PASSWORD);
        let directory = launch.directory.path().to_owned();
        commands.iter().for_each(|command| openssl(&directory, command));
        let password = format!(" -passin pass:{PASSWORD}");
        openssl(
            &directory,
            &format!(
                "req -x509 -new -key key.pem -subj /CN=x -addext basicConstraints=critical,CA:FALSE -addext \
                 subjectAltName=DNS:localhost -days 2 -out cert.pem{password}"
            ),
        );
        let server = launch.start();
        let own = std::fs::read_to_string(directory.join("cert.pem")).expect("exists");
        let mut connection = over_tls(server.connect().stream, &client(&own, None));
        assert_eq!(connection.send("GET", "/health", &[], None).status, 200, "{commands:?}");
        let log = server.log();
        assert!(log.contains("serving over TLS only") && !log.contains(PASSWORD), "{log}");
    }
}

#[test]
fn the_whole_chain_is_presented() {
    let root = Authority::new("root");
    let between = root.intermediate("between");
    let issued = between.issue();
    let launch = launch();
    issued.write(launch.directory.path());
    put(
        launch.directory.path(),
        "cert.pem",
        &format!("{}\n# between\n{}", issued.certificate, between.certificate),
    );
    let server = launch.start();
    let mut client = over_tls(server.connect().stream, &root.client(None));
    assert_eq!(client.send("GET", "/health", &[], None).status, 200);
    assert_eq!(client.stream.conn.peer_certificates().expect("some").len(), 2);
}

#[test]
fn errors_of_certificates_and_keys() {
    let authority = Authority::new("an authority");
    let good = authority.issue();
    let other = authority.issue();
    let expired = authority.issue_with(|params| params.not_after = rcgen::date_time_ymd(2020, 1, 1));
    let future = authority.issue_with(|params| params.not_before = rcgen::date_time_ymd(2090, 1, 1));
    let certificate_text = |text: &str| format!("OSC_SSL_CERTFILE: \"cert.pem\" {text}");
    let key_text = |text: &str| format!("OSC_SSL_KEYFILE: \"key.pem\" {text}");
    let none = "contains no certificate (allowed: PEM, -----BEGIN CERTIFICATE-----)";
    let no_key = "contains no private key (allowed: PEM, in PKCS#8, PKCS#1 or SEC1)";
    let unreadable = "contains a certificate that cannot be parsed (allowed: X.509, version 3)";
    let mismatch = "contains a private key that does not match the first certificate in OSC_SSL_CERTFILE";
    let unusable = "contains an invalid or unsupported private key (allowed: RSA of 2048 to 4096 bits, ECDSA on P-256 or \
                    P-384, Ed25519)";
    let damaged = good.certificate.replacen("MII", "MIJ", 1);
    let cut = &good.certificate[..good.certificate.len() / 2];
    let key_cut = &good.key[..good.key.len() / 2];
    let reversed = format!("{}{}", authority.certificate, good.certificate);
    let long = "x".repeat(1024 * 1024 + 1);
    for (certificate, key, expected) in [
        ("", &*good.key, vec![certificate_text(none)]),
        (&*good.certificate, "", vec![key_text(no_key)]),
        ("", "", vec![certificate_text(none), key_text(no_key)]),
        (&*good.key, &*good.certificate, vec![certificate_text(none), key_text(no_key)]),
        (&*good.certificate, &*other.key, vec![key_text(mismatch)]),
        (&reversed, &*good.key, vec![key_text(mismatch)]),
        (&damaged, &*good.key, vec![certificate_text(unreadable)]),
        (cut, &*good.key, vec![certificate_text(unreadable)]),
        (&*good.certificate, key_cut, vec![key_text(no_key)]),
        (
            &*good.certificate,
            "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
            vec![key_text(unusable)],
        ),
        (
            &*expired.certificate,
            &*expired.key,
            vec![certificate_text("contains a certificate that expired at 2020-01-01T00:00:00Z")],
        ),
        (
            &*future.certificate,
            "",
            // A clock that is behind does not prevent the start.
            vec![key_text(no_key)],
        ),
        (&long, &*good.key, vec![certificate_text("exceeds the 1048576-byte limit for certificate files")]),
    ] {
        let launch = launch();
        put(launch.directory.path(), "cert.pem", certificate);
        put(launch.directory.path(), "key.pem", key);
        assert_eq!(refusal(&launch), expected);
    }
}

#[test]
fn errors_of_the_key_password() {
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(["localhost".to_owned()]).expect("a name");
    let launch = launch();
    let directory = launch.directory.path().to_owned();
    put(&directory, "cert.pem", &params.self_signed(&key).expect("signed").pem());
    put(&directory, "plain.pem", &key.serialize_pem());
    openssl(
        &directory,
        &format!("pkcs8 -topk8 -v2 aes-256-cbc -passout pass:{PASSWORD} -in plain.pem -out key.pem"),
    );
    assert_eq!(
        refusal(&launch),
        ["OSC_SSL_KEYFILE_PASSWORD: is empty, but the key in OSC_SSL_KEYFILE is encrypted"]
    );
    let launch = launch.set("OSC_SSL_KEYFILE_PASSWORD", &format!("not-{PASSWORD}"));
    assert_eq!(refusal(&launch), ["OSC_SSL_KEYFILE_PASSWORD: does not decrypt the key in OSC_SSL_KEYFILE"]);
    let launch = launch.set("OSC_SSL_KEYFILE_PASSWORD", PASSWORD);
    assert!(check(&launch).status.success());
    for command in
        ["ec -aes256 -in plain.pem -out key.pem", "pkcs8 -topk8 -v2 des3 -in plain.pem -out key.pem"]
    {
        openssl(&directory, &format!("{command} -passout pass:{PASSWORD}"));
        let text = refusal(&launch).join("\n");
        assert!(
            text.starts_with(
                "OSC_SSL_KEYFILE: \"key.pem\" contains a private key in an obsolete encrypted format; "
            ),
            "{text}"
        );
    }
}

#[test]
fn all_errors_are_reported_together() {
    let launch = Launch::new().set("OSC_HTTPS_ENABLED", "true").set("OSC_LOG_LEVEL", "loud");
    let launch = launch.set("OSC_SSL_CA_CERTS", "/nowhere/ca.pem").set("OSC_SSL_KEYFILE_PASSWORD", PASSWORD);
    assert_eq!(
        refusal(&launch),
        [
            "OSC_SSL_CERTFILE: is empty, but OSC_HTTPS_ENABLED is true",
            "OSC_SSL_KEYFILE: is empty, but OSC_HTTPS_ENABLED is true",
            "OSC_SSL_CA_CERTS: \"/nowhere/ca.pem\" cannot be read: No such file or directory (os error 2)",
            "OSC_LOG_LEVEL: \"loud\" is unknown (allowed: DEBUG, INFO, WARNING, WARN, ERROR, CRITICAL)",
        ]
    );
    let launch =
        launch.set("OSC_SSL_CERTFILE", ".").set("OSC_SSL_KEYFILE", "none.pem").set("OSC_LOG_LEVEL", "");
    let authority = Authority::new("of long ago");
    let old = authority.issue_with(|params| params.not_after = rcgen::date_time_ymd(2020, 1, 1));
    put(launch.directory.path(), "old.pem", &old.certificate);
    let launch = launch.set("OSC_SSL_CA_CERTS", "old.pem").set("OSC_CLUSTER_ENABLED", "true");
    let launch = launch.set("OSC_CLUSTER_NODES", "node1:9000").set("OSC_CLUSTER_CA_CERTS", "plain.txt");
    put(launch.directory.path(), "plain.txt", "nothing\n");
    assert_eq!(
        refusal(&launch),
        [
            "OSC_SSL_CERTFILE: \".\" is not a regular file",
            "OSC_SSL_KEYFILE: \"none.pem\" cannot be read: No such file or directory (os error 2)",
            "OSC_SSL_CA_CERTS: \"old.pem\" contains a certificate that expired at 2020-01-01T00:00:00Z",
            "OSC_CLUSTER_CA_CERTS: \"plain.txt\" contains no certificate (allowed: PEM, -----BEGIN CERTIFICATE-----)",
        ]
    );
}

#[test]
fn check_config_shows_the_files_and_no_secret() {
    let authority = Authority::new("an authority");
    let launch = launch().set("OSC_SSL_KEYFILE_PASSWORD", PASSWORD).set("OSC_SSL_CA_CERTS", "ca.pem");
    let launch =
        launch.set("OSC_CLUSTER_ENABLED", "true").set("OSC_CLUSTER_NODES", "http://a:1,b:2,https://c:3");
    authority.issue().write(launch.directory.path());
    put(launch.directory.path(), "ca.pem", &authority.certificate);
    let Output { status, stdout, stderr } = check(&launch);
    let text = String::from_utf8(stdout).expect("text");
    assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
    let tls = "OSC_HTTPS_ENABLED=true\nOSC_SSL_CERTFILE=cert.pem\nOSC_SSL_KEYFILE=key.pem\n\
               OSC_SSL_KEYFILE_PASSWORD=(set)\nOSC_SSL_CA_CERTS=ca.pem\nOSC_CLUSTER_CA_CERTS=ca.pem\n";
    for expected in [tls, "OSC_CLUSTER_NODES=a:1,https://b:2,https://c:3\n"] {
        assert!(text.contains(expected) && !text.contains(PASSWORD), "{text}");
    }
}

#[test]
fn a_clock_that_is_behind_does_not_prevent_the_start() {
    let authority = Authority::new("an authority");
    let future = authority.issue_with(|params| {
        params.not_before = rcgen::date_time_ymd(2090, 1, 1);
        params.not_after = rcgen::date_time_ymd(2091, 1, 1);
    });
    let launch = launch();
    put(launch.directory.path(), "cert.pem", &future.certificate);
    put(launch.directory.path(), "key.pem", &future.key);
    let server = launch.start();
    let log = server.log();
    assert!(log.contains("WARN") && log.contains("is not valid before 2090-01-01T00:00:00Z"), "{log}");
}
