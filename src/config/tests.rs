//! Contract of the whole module: defaults, errors, warnings, and secrets that must never be shown.

use std::os::unix::ffi::OsStringExt;

use super::table::SETTINGS;
use super::*;

fn names() -> impl Iterator<Item = &'static str> {
    SETTINGS.iter().map(|setting| setting.name)
}

const CANARY: &str = "c4nary-in-the-c0al-mine";

type Outcome = Result<(Config, Vec<Warning>), SettingErrors>;

fn read(environment: &[(&str, &str)], dotenv: &str) -> Outcome {
    let environment =
        environment.iter().map(|(name, value)| ((*name).to_owned(), OsString::from(value))).collect();
    let outcome = from_sources(&environment, Some(dotenv.as_bytes()));
    let shown = match &outcome {
        Ok((config, warnings)) => format!("{config:?} {warnings:?} {}", config.summary()),
        Err(errors) => format!("{errors:?} {errors}"),
    };
    assert!(!shown.contains(CANARY), "{shown}");
    outcome
}

fn config(environment: &[(&str, &str)]) -> Config {
    read(environment, "").unwrap_or_else(|errors| panic!("{environment:?}: {errors}")).0
}

fn errors(environment: &[(&str, &str)]) -> String {
    read(environment, "").err().unwrap_or_else(|| panic!("{environment:?} is valid")).to_string()
}

fn warnings(environment: &[(&str, &str)], dotenv: &str) -> Vec<String> {
    let (_, warnings) =
        read(environment, dotenv).unwrap_or_else(|errors| panic!("{environment:?}: {errors}"));
    warnings.iter().map(Warning::to_string).collect()
}

const DEFAULTS: &str = "OSC_HOST=127.0.0.1
OSC_HOST_PORT=9000
OSC_ADMIN_LISTEN=(none)
OSC_WORKERS=(one per usable core)
OSC_DRAIN_SECONDS=0
OSC_ENGINE=auto
OSC_STORE=sqlite
OSC_DATABASE_PATH=configurations.db
OSC_SALT_FILE_PATH=encryption.salt
OSC_ACCEPT_SALT=(none)
OSC_MIN_USER_KEY_LENGTH=8
OSC_API_KEY_REQUIRED=false
OSC_API_KEY=(not required)
OSC_PUBLIC_ROOT=false
OSC_METRICS_AUTH=false
OSC_ALLOWED_HOSTS=(local names)
CORS_ORIGINS=(none)
OSC_RATE_LIMIT_PER_ADDRESS=(no limit)
OSC_RATE_LIMIT_PER_API_KEY=(no limit)
OSC_FAILED_KEYS_PER_ADDRESS=30
OSC_CONNECTIONS_PER_ADDRESS=(three quarters of all)
OSC_TRUSTED_PROXIES=(none)
OSC_FORWARDED_HEADER=x-forwarded-for
OSC_PROXY_PROTOCOL=false
OSC_CLUSTER_ENABLED=false
OSC_CLUSTER_NODE_ID=node-9000
OSC_HTTPS_ENABLED=false
OSC_LOG_LEVEL=INFO
OSC_LOG_FORMAT=console
OSC_LOG_FILE=(standard error)
OSC_ENV_FILE=(.env)
";

#[test]
fn defaults() {
    assert_eq!(config(&[]).summary(), DEFAULTS);
    let (config, warnings) = from_sources(&BTreeMap::new(), None).expect("no error");
    assert_eq!(config.summary(), DEFAULTS);
    assert_eq!(config.host.addresses(), [std::net::SocketAddr::from(([127, 0, 0, 1], 9000))]);
    assert_eq!(warnings, []);
}

/// `.env.example` lists every variable, and changes nothing if it is used unmodified.
#[test]
fn the_example_contains_the_defaults() {
    let example = include_str!("../../.env.example");
    assert_eq!(read(&[], example).expect("no error").0.summary(), DEFAULTS);
    assert_eq!(warnings(&[], example), [""; 0]);
    let uncommented: String = example
        .lines()
        .filter_map(|line| {
            line.strip_prefix('#').filter(|line| line.starts_with("OSC_") || line.starts_with("CORS_"))
        })
        .map(|line| format!("{line}\n"))
        .collect();
    let (config, warnings) = read(&[], &uncommented).expect("no error");
    assert_eq!(config.summary(), DEFAULTS.replace("(one per usable core)", "4"));
    assert_eq!(warnings, []);
    for name in names() {
        assert!(uncommented.contains(&format!("{name}=")), "{name}");
    }
}

#[test]
fn empty_variables_are_unset() {
    let empty: Vec<_> = names().map(|name| (name, "")).collect();
    assert_eq!(config(&empty).summary(), DEFAULTS);
}

#[test]
fn every_setting() {
    let (config, warnings) = read(
        &[
            ("OSC_HOST", "[::]"),
            ("OSC_HOST_PORT", "9321"),
            ("OSC_WORKERS", "3"),
            ("OSC_LOG_LEVEL", "warn"),
            ("OSC_ADMIN_LISTEN", "9002"),
        ],
        &format!(
            "OSC_HOST=ignored..\nOSC_DATABASE_PATH=/data/a b.db\nOSC_SALT_FILE_PATH='/data/salt'\n\
             OSC_ACCEPT_SALT=ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410FF61F20015AD\n\
             OSC_MIN_USER_KEY_LENGTH=12\nOSC_API_KEY_REQUIRED=True\nOSC_API_KEY=\"{CANARY}\"\n\
             OSC_CLUSTER_MODE=nonsense\nOSC_CLUSTER_NODES=a:1,b:2\nOSC_CLUSTER_SYNC_INTERVAL=never\n\
             OSC_CLUSTER_NODE_ID=${{HERE}}n1\nOSC_LOG_FORMAT=JSON\nOSC_LOG_FILE=log\n\
             OSC_DRAIN_SECONDS=5\nOSC_ENGINE=Epoll\nOSC_STORE=Memory\nOSC_PUBLIC_ROOT=true\nOSC_METRICS_AUTH=true\n\
             OSC_RATE_LIMIT_PER_ADDRESS=5\nOSC_RATE_LIMIT_PER_API_KEY=6\n\
             OSC_FAILED_KEYS_PER_ADDRESS=0\nOSC_CONNECTIONS_PER_ADDRESS=7\n\
             OSC_TRUSTED_PROXIES=10.0.0.0/8,::1\nOSC_PROXY_PROTOCOL=true\n\
             OSC_FORWARDED_HEADER=Forwarded\nOSC_ALLOWED_HOSTS=conf.example.org, *.lan:9000\n\
             CORS_ORIGINS=\"https://a.example.org, HTTP://B:81\"\n"
        ),
    )
    .expect("no error");
    assert!(matches!(&*config.api_keys, [key] if key.matches(CANARY.as_bytes())));
    assert_eq!(config.host.addresses(), [std::net::SocketAddr::from(([0_u16; 8], 9321))]);
    assert_eq!(
        config.summary(),
        "OSC_HOST=[::]\nOSC_HOST_PORT=9321\nOSC_ADMIN_LISTEN=127.0.0.1:9002\nOSC_WORKERS=3\n\
         OSC_DRAIN_SECONDS=5\nOSC_ENGINE=epoll\nOSC_STORE=memory\nOSC_DATABASE_PATH=/data/a b.db\nOSC_SALT_FILE_PATH=/data/salt\n\
         OSC_ACCEPT_SALT=(set)\nOSC_MIN_USER_KEY_LENGTH=12\nOSC_API_KEY_REQUIRED=true\nOSC_API_KEY=(set)\n\
         OSC_PUBLIC_ROOT=true\nOSC_METRICS_AUTH=true\nOSC_ALLOWED_HOSTS=conf.example.org,*.lan:9000\n\
         CORS_ORIGINS=https://a.example.org,http://b:81\nOSC_RATE_LIMIT_PER_ADDRESS=5\n\
         OSC_RATE_LIMIT_PER_API_KEY=6\nOSC_FAILED_KEYS_PER_ADDRESS=(no limit)\n\
         OSC_CONNECTIONS_PER_ADDRESS=7\nOSC_TRUSTED_PROXIES=10.0.0.0/8,::1/128\n\
         OSC_FORWARDED_HEADER=forwarded\nOSC_PROXY_PROTOCOL=true\nOSC_CLUSTER_ENABLED=false\n\
         OSC_CLUSTER_NODE_ID=n1\nOSC_HTTPS_ENABLED=false\nOSC_LOG_LEVEL=WARNING\nOSC_LOG_FORMAT=json\n\
         OSC_LOG_FILE=log\nOSC_ENV_FILE=(.env)\n"
    );
    let cluster = "OSC_CLUSTER_ENABLED is not true";
    assert_eq!(warnings, [Warning::NoEffect { names: "OSC_CLUSTER_NODES".to_owned(), reason: cluster }]);
}

#[test]
fn origins() {
    for (text, origin, allowed) in [
        ("*", "https://x", Some("*")),
        ("https://a, http://b:81", "http://b:81", Some("http://b:81")),
        ("https://a", "https://a:444", None),
        ("https://a", "null", None),
        ("http://[::1]:3000", "http://[::1]:3000", Some("http://[::1]:3000")),
    ] {
        let origins = config(&[("CORS_ORIGINS", text)]).origins.expect(text);
        assert_eq!(origins.allows(origin), allowed, "{text} {origin}");
    }
    for text in ["https://a/", "a.example.org", "https://", "https://a b", "https://*.a", "*,https://a"] {
        assert!(errors(&[("CORS_ORIGINS", text)]).contains("is not an origin"), "{text}");
    }
}

/// A rebound name can only direct browsers on this machine to a loopback server, and they can only use it without an
/// API key.
#[test]
fn hosts_are_restricted_where_a_rebound_name_could_be_used() {
    let allowed = |environment: &[(&str, &str)]| {
        config(environment).allowed_hosts.map_or("*".to_owned(), |hosts| hosts.to_string())
    };
    let keyed = [("OSC_API_KEY_REQUIRED", "true"), ("OSC_API_KEY", CANARY)];
    let clustered = [("OSC_CLUSTER_ENABLED", "true"), ("OSC_CLUSTER_NODES", "node2.example,[::1]:9001")];
    let local = "(local names)";
    assert_eq!(allowed(&[]), local);
    assert_eq!(allowed(&[("OSC_HOST", "LOCALHOST")]), local);
    assert_eq!(allowed(&clustered), format!("{local},node2.example,[::1]"));
    for open in [&[("OSC_HOST", "0.0.0.0")][..], &keyed, &[("OSC_ALLOWED_HOSTS", " * ")]] {
        assert_eq!(allowed(open), "*", "{open:?}");
    }
    let listening = [&clustered[..], &[("OSC_CLUSTER_LISTEN", "0.0.0.0:9001")]].concat();
    assert_eq!(allowed(&listening), "*");
    let named = [&keyed[..], &clustered, &[("OSC_ALLOWED_HOSTS", "conf.example")]].concat();
    assert_eq!(allowed(&named), "conf.example,node2.example,[::1]");
    for text in ["*,a", "http://a", "a b", "a:port"] {
        assert!(errors(&[("OSC_ALLOWED_HOSTS", text)]).contains("is not a host (allowed: *"), "{text}");
    }
}

#[test]
fn proxies() {
    let proxies = |list: &str| config(&[("OSC_TRUSTED_PROXIES", list)]).clients.proxies;
    for (list, trusted, untrusted) in [
        ("::ffff:127.0.0.1", &["127.0.0.1", "::ffff:127.0.0.1"][..], &["127.0.0.2", "::1"][..]),
        ("::ffff:10.0.0.0/104", &["10.255.0.1", "::ffff:10.0.0.1"], &["11.0.0.1"]),
        ("::ffff:0.0.0.0/96", &["192.0.2.1"], &["::1"]),
        (
            "10.0.0.0/8,2001:db8::/32",
            &["10.0.0.1", "::ffff:10.0.0.1", "2001:db8::1"],
            &["11.0.0.1", "2001:db9::"],
        ),
    ] {
        let proxies = proxies(list);
        for (addresses, expected) in [(trusted, true), (untrusted, false)] {
            for address in addresses {
                assert_eq!(
                    proxies.contain(address.parse().expect("an address")),
                    expected,
                    "{list} {address}"
                );
            }
        }
    }
    assert_eq!(
        errors(&[("OSC_PROXY_PROTOCOL", "true")]),
        "OSC_TRUSTED_PROXIES: is empty, but OSC_PROXY_PROTOCOL is true: list the addresses or networks of the proxies"
    );
    assert!(errors(&[("OSC_FORWARDED_HEADER", "via")]).contains("allowed: x-forwarded-for, forwarded"));
}

#[test]
fn the_environment_takes_precedence_even_if_empty() {
    let (config, _) = read(
        &[("OSC_HOST_PORT", "1"), ("OSC_WORKERS", "")],
        "OSC_HOST_PORT=2\nOSC_WORKERS=2\nOSC_MIN_USER_KEY_LENGTH=9",
    )
    .expect("no error");
    assert_eq!((config.port, config.workers, config.user_key_bytes_min), (1, None, 9));
}

#[test]
fn bounds_are_allowed() {
    let smallest = [("OSC_HOST_PORT", "0"), ("OSC_WORKERS", "1"), ("OSC_MIN_USER_KEY_LENGTH", "1")];
    assert_eq!(config(&smallest).port, 0);
    let largest =
        [("OSC_HOST_PORT", " 65535 "), ("OSC_WORKERS", "1024"), ("OSC_MIN_USER_KEY_LENGTH", "8192")];
    assert_eq!(config(&largest).node_id, "node-65535");
    for level in ["DEBUG", "Info", "warning", "WARN", "error", "CRITICAL"] {
        config(&[("OSC_LOG_LEVEL", level)]);
    }
}

#[test]
fn switches() {
    for (text, expected) in [
        ("true", true),
        ("TRUE", true),
        ("tRuE ", true),
        ("false", false),
        ("False", false),
        ("0", false),
        ("no", false),
        ("OFF", false),
        (" ", false),
    ] {
        let config = config(&[("OSC_API_KEY_REQUIRED", text), ("OSC_API_KEY", CANARY)]);
        assert_eq!(!config.api_keys.is_empty(), expected, "{text}");
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn every_error() {
    let long = "n".repeat(256);
    let long_shown =
        format!("OSC_CLUSTER_NODE_ID: \"{}\"… is too long (allowed: 255 characters)", "n".repeat(80));
    for (variable, value, expected) in [
        ("OSC_HOST_PORT", "65536", "OSC_HOST_PORT: \"65536\" is not a port (allowed: 1 to 65535)"),
        ("OSC_HOST_PORT", "-1", "OSC_HOST_PORT: \"-1\" is not a port (allowed: 1 to 65535)"),
        ("OSC_HOST_PORT", "+80", "OSC_HOST_PORT: \"+80\" is not a port (allowed: 1 to 65535)"),
        (
            "OSC_HOST_PORT",
            "tcp://10.0.0.7:9000",
            "OSC_HOST_PORT: \"tcp://10.0.0.7:9000\" is not a port (allowed: 1 to 65535); \
             Kubernetes sets it for a Service named osc-host unless the pod has enableServiceLinks: false",
        ),
        (
            "OSC_HOST",
            "http://x",
            "OSC_HOST: \"http://x\" is neither an address nor a name \
             (allowed: an IPv4 or IPv6 address, or a host name)",
        ),
        (
            "OSC_HOST",
            "0.0.0.0:9000",
            "OSC_HOST: \"0.0.0.0:9000\" has a port, which belongs in OSC_HOST_PORT \
             (allowed: an IPv4 or IPv6 address, or a host name)",
        ),
        ("OSC_WORKERS", "0", "OSC_WORKERS: \"0\" is not a number of workers (allowed: 1 to 1024)"),
        ("OSC_WORKERS", "1025", "OSC_WORKERS: \"1025\" is not a number of workers (allowed: 1 to 1024)"),
        (
            "OSC_DRAIN_SECONDS",
            "3601",
            "OSC_DRAIN_SECONDS: \"3601\" is not a number of seconds (allowed: 0 to 3600)",
        ),
        (
            "OSC_DRAIN_SECONDS",
            "-1",
            "OSC_DRAIN_SECONDS: \"-1\" is not a number of seconds (allowed: 0 to 3600)",
        ),
        (
            "OSC_DRAIN_SECONDS",
            "5s",
            "OSC_DRAIN_SECONDS: \"5s\" is not a number of seconds (allowed: 0 to 3600)",
        ),
        ("OSC_WORKERS", "four", "OSC_WORKERS: \"four\" is not a number of workers (allowed: 1 to 1024)"),
        (
            "OSC_MIN_USER_KEY_LENGTH",
            "0",
            "OSC_MIN_USER_KEY_LENGTH: \"0\" is not a length (allowed: 1 to 8192)",
        ),
        (
            "OSC_MIN_USER_KEY_LENGTH",
            "8193",
            "OSC_MIN_USER_KEY_LENGTH: \"8193\" is not a length (allowed: 1 to 8192)",
        ),
        ("OSC_DATABASE_PATH", "/data/", "OSC_DATABASE_PATH: \"/data/\" is not a file path"),
        ("OSC_DATABASE_PATH", "..", "OSC_DATABASE_PATH: \"..\" is not a file path"),
        ("OSC_DATABASE_PATH", " ", "OSC_DATABASE_PATH: \" \" is not a file path"),
        ("OSC_DATABASE_PATH", ":memory:", "OSC_DATABASE_PATH: \":memory:\" is not a file path"),
        ("OSC_DATABASE_PATH", "file:x?mode=ro", "OSC_DATABASE_PATH: \"file:x?mode=ro\" is not a file path"),
        ("OSC_DATABASE_PATH", "a\0b", "OSC_DATABASE_PATH: \"a\"… contains a control character"),
        (
            "OSC_SALT_FILE_PATH",
            "./configurations.db",
            "OSC_SALT_FILE_PATH: \"./configurations.db\" is the same file as OSC_DATABASE_PATH",
        ),
        (
            "OSC_ACCEPT_SALT",
            &"0".repeat(63),
            "OSC_ACCEPT_SALT: is not a SHA-256 digest (allowed: 64 hexadecimal digits, as sha256sum prints them)",
        ),
        (
            "OSC_API_KEY_REQUIRED",
            "Yes",
            "OSC_API_KEY_REQUIRED: \"Yes\" is ambiguous: the Python server reads it as false \
             (allowed: true, false, 0, no, off)",
        ),
        (
            "OSC_API_KEY_REQUIRED",
            "\"true\"",
            "OSC_API_KEY_REQUIRED: \"\"true\"\" is not a boolean (allowed: true, false, 0, no, off)",
        ),
        ("OSC_API_KEY_REQUIRED", "true", "OSC_API_KEY: is empty, but OSC_API_KEY_REQUIRED is true"),
        (
            "OSC_HTTPS_ENABLED",
            "true",
            "OSC_SSL_CERTFILE: is empty, but OSC_HTTPS_ENABLED is true\n\
             OSC_SSL_KEYFILE: is empty, but OSC_HTTPS_ENABLED is true",
        ),
        ("OSC_CLUSTER_NODE_ID", &long, &long_shown),
        (
            "OSC_LOG_LEVEL",
            "TRACE",
            "OSC_LOG_LEVEL: \"TRACE\" is unknown \
             (allowed: DEBUG, INFO, WARNING, WARN, ERROR, CRITICAL)",
        ),
        ("OSC_ENGINE", "iocp", "OSC_ENGINE: \"iocp\" is unknown (allowed: auto, uring, epoll)"),
        ("OSC_STORE", "postgres", "OSC_STORE: \"postgres\" is unknown (allowed: sqlite, memory)"),
        ("OSC_LOG_FORMAT", "text", "OSC_LOG_FORMAT: \"text\" is unknown (allowed: json, console)"),
    ] {
        assert_eq!(errors(&[(variable, value)]), expected);
    }
}

#[test]
fn every_error_of_the_api_key() {
    let with_space = format!(" {CANARY}");
    let with_line = format!("{CANARY}\n");
    let with_letter = format!("{CANARY}é");
    for (value, expected) in [
        ("", "is empty, but OSC_API_KEY_REQUIRED is true"),
        ("your-super-secret-api-key-here", "is the documented example, which is not a secret"),
        (&with_space, "has leading or trailing white space, which is not part of a header value"),
        (&with_line, "contains a control character, which clients cannot send in a header"),
        ("a", "is shorter than 8 characters, so it can be guessed"),
        ("1234567", "is shorter than 8 characters, so it can be guessed"),
        ("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "is one repeated character, so it can be guessed"),
        (&with_letter, "contains non-ASCII characters, which clients encode in different ways"),
    ] {
        let environment = [("OSC_API_KEY_REQUIRED", "true"), ("OSC_API_KEY", value)];
        assert_eq!(errors(&environment), format!("OSC_API_KEY: {expected}"));
        assert_eq!(warnings(&environment[1..], "").len(), usize::from(!value.is_empty()));
    }
}

#[test]
fn api_keys_in_a_file() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("keys");
    let path_text = path.to_str().expect("UTF-8");
    let environment = [("OSC_API_KEY_REQUIRED", "true"), ("OSC_API_KEY_FILE", path_text)];
    for (text, expected) in [
        ("# old\n the-first \n\nthe-second\n", Ok(2)),
        ("only-one", Ok(1)),
        ("", Err("contains no key")),
        ("# nothing\n", Err("contains no key")),
        (
            "long-enough\nb\u{e4}d",
            Err("line 2 contains non-ASCII characters, which clients encode in different ways"),
        ),
        ("your-super-secret-api-key-here", Err("line 1 is the documented example, which is not a secret")),
        ("long-enough\nshort", Err("line 2 is shorter than 8 characters, so it can be guessed")),
        (&"long-enough\n".repeat(65), Err("contains more than 64 keys")),
    ] {
        std::fs::write(&path, text).expect("written");
        match expected {
            Ok(count) => assert_eq!(config(&environment).api_keys.len(), count, "{text}"),
            Err(problem) => {
                assert_eq!(errors(&environment), format!("OSC_API_KEY_FILE: \"{path_text}\" {problem}"));
            }
        }
    }
    std::fs::write(&path, "one-more").expect("written");
    let both = config(&[environment[0], environment[1], ("OSC_API_KEY", "the-first")]).api_keys;
    assert!(both.len() == 2 && both[0].matches(b"the-first") && both[1].matches(b"one-more"));
    let short = |name: &str| {
        format!(
            "{name}: contains an API key shorter than 16 characters; generate one with `openssl rand -hex 32`"
        )
    };
    std::fs::write(&path, "# long enough\n0123456789abcdef\n123456789abcdef\n").expect("written");
    let found = warnings(&[environment[0], environment[1], ("OSC_API_KEY", "the-first")], "");
    assert_eq!(found, [short("OSC_API_KEY"), short("OSC_API_KEY_FILE")]);
    std::fs::remove_file(&path).expect("removed");
    assert!(errors(&environment).contains("cannot be read: No such file"), "{}", errors(&environment));
}

#[test]
fn values_that_are_not_utf8_are_errors() {
    let bytes = [CANARY.as_bytes(), b"\xff"].concat();
    let mut environment: BTreeMap<String, OsString> = names()
        .filter(|name| {
            // These are read only on a cluster node.
            !matches!(
                *name,
                "OSC_CLUSTER_MODE"
                    | "OSC_CLUSTER_NODES"
                    | "OSC_CLUSTER_SYNC_INTERVAL"
                    | "OSC_CLUSTER_WRITE_ACKS"
                    | "OSC_FEDERATED_TIMEOUT_MS"
                    | "OSC_FEDERATED_STRICT"
            )
        })
        .map(|name| ((*name).to_owned(), OsString::from_vec(bytes.clone())))
        .collect();
    let count = environment.len();
    environment.insert("OTHER".to_owned(), OsString::from_vec(bytes));
    let errors = from_sources(&environment, None).expect_err("errors");
    assert_eq!(errors.as_slice().len(), count, "{errors}");
    assert!(errors.as_slice().iter().all(|error| error.message == "is not UTF-8"), "{errors}");
    // Expansion in the settings file does not turn it into text either.
    environment.retain(|name, _| name == "OTHER");
    let errors = from_sources(&environment, Some(b"OSC_HOST=${OTHER}")).expect_err("an error");
    assert_eq!(errors.to_string(), "OSC_HOST: is not UTF-8");
}

#[test]
fn the_listener_for_peers() {
    let clustered =
        |listen| [("OSC_CLUSTER_ENABLED", "true"), ("OSC_HOST", "::"), ("OSC_CLUSTER_LISTEN", listen)];
    let summary = config(&clustered("127.0.0.1:9001")).summary();
    assert!(summary.contains("OSC_CLUSTER_LISTEN=127.0.0.1:9001\n"), "{summary}");
    for (listen, error) in [
        ("127.0.0.1", "\"127.0.0.1\" has no port (allowed: host:port, [v6]:port)"),
        ("127.0.0.1:9000", "\"127.0.0.1:9000\" overlaps with OSC_HOST and OSC_HOST_PORT"),
    ] {
        assert_eq!(errors(&clustered(listen)), format!("OSC_CLUSTER_LISTEN: {error}"));
    }
    assert_eq!(
        warnings(&[("OSC_CLUSTER_LISTEN", "127.0.0.1:9001")], ""),
        ["OSC_CLUSTER_LISTEN: set but not used, because OSC_CLUSTER_ENABLED is not true"]
    );
}

#[test]
fn all_errors_are_reported_in_the_order_of_the_settings() {
    let errors = read(
        &[
            ("OSC_LOG_FORMAT", "xml"),
            ("OSC_HOST_PORT", "tcp"),
            ("OSC_CLUSTER_ENABLED", "true"),
            ("OSC_API_KEY", ""),
        ],
        "OSC_WORKERS=none\nOSC_HOST=a b\nOSC_API_KEY_REQUIRED=true\nOSC_CLUSTER_MODE=ring\n\
         OSC_CLUSTER_NODES=a:1,b:0,c d\nOSC_CLUSTER_SYNC_INTERVAL=0\nOSC_CLUSTER_WRITE_ACKS=most\n\
         OSC_LOG_LEVEL=loud\nOSC_MIN_USER_KEY_LENGTH=x\nOSC_DATABASE_PATH=/\nOSC_SALT_FILE_PATH=/\n",
    )
    .expect_err("errors");
    let variables: Vec<&str> = errors.as_slice().iter().map(|error| error.variable).collect();
    assert_eq!(
        variables,
        [
            "OSC_HOST",
            "OSC_HOST_PORT",
            "OSC_WORKERS",
            "OSC_DATABASE_PATH",
            "OSC_SALT_FILE_PATH",
            "OSC_SALT_FILE_PATH",
            "OSC_MIN_USER_KEY_LENGTH",
            "OSC_API_KEY",
            "OSC_CLUSTER_MODE",
            "OSC_CLUSTER_NODES",
            "OSC_CLUSTER_NODES",
            "OSC_CLUSTER_SYNC_INTERVAL",
            "OSC_CLUSTER_WRITE_ACKS",
            "OSC_LOG_LEVEL",
            "OSC_LOG_FORMAT",
        ]
    );
    assert_eq!(errors.to_string().lines().count(), variables.len());
}

/// An unclosed quote includes the lines up to the next quote.
#[test]
fn a_secret_within_another_value_is_not_shown() {
    let file = format!("OSC_HOST='0.0.0.0\nOSC_API_KEY={CANARY}\nOSC_LOG_LEVEL='\n");
    let errors = read(&[], &file).expect_err("an error");
    assert_eq!(errors.to_string(), "OSC_HOST: \"0.0.0.0\"… contains a control character");
}

#[test]
fn links_to_the_same_file_are_an_error() {
    let directory = tempfile::tempdir().expect("a directory");
    let (database, salt) = (directory.path().join("a.db"), directory.path().join("a.salt"));
    std::fs::write(&database, "").expect("written");
    std::os::unix::fs::symlink(&database, &salt).expect("linked");
    let [database, salt] = [&database, &salt].map(|path| path.to_str().expect("UTF-8"));
    let found = errors(&[("OSC_DATABASE_PATH", database), ("OSC_SALT_FILE_PATH", salt)]);
    assert!(found.ends_with("is the same file as OSC_DATABASE_PATH"), "{found}");
}

#[test]
fn every_warning() {
    let open = "OSC_HOST: listening on non-loopback address 0.0.0.0 without requiring an API key";
    assert_eq!(warnings(&[("OSC_HOST", "0.0.0.0")], ""), [open]);
    let protected = [("OSC_HOST", "0.0.0.0"), ("OSC_API_KEY_REQUIRED", "true"), ("OSC_API_KEY", CANARY)];
    assert_eq!(warnings(&protected, ""), [""; 0]);
    assert_eq!(
        warnings(
            &[
                ("OSC_API_KEY", CANARY),
                ("OSC_HOST_SERVICE_HOST", "10.0.0.7"),
                ("OSC_PORT", "tcp://10.0.0.7:9000"),
                ("PATH", "/bin")
            ],
            "\nOSC_PROT=1\nOTHER=1\n"
        ),
        [
            "OSC_API_KEY: set but not used, because OSC_API_KEY_REQUIRED is not true",
            "OSC_PROT: unknown variable, ignored",
        ]
    );
    assert_eq!(
        warnings(&[("OSC_API_KEY_FILE", "keys"), ("OSC_METRICS_AUTH", "true")], ""),
        ["OSC_API_KEY_FILE", "OSC_METRICS_AUTH"]
            .map(|name| format!("{name}: set but not used, because OSC_API_KEY_REQUIRED is not true"))
    );
    let unused = "OSC_SSL_CERTFILE, OSC_SSL_KEYFILE: set but not used, because OSC_HTTPS_ENABLED is not true";
    assert_eq!(
        warnings(&[("OSC_SSL_KEYFILE", "key.pem"), ("OSC_SSL_KEYFILE_PASSWORD", CANARY)], ""),
        [unused, "OSC_SSL_KEYFILE_PASSWORD: set but not used, because OSC_HTTPS_ENABLED is not true"]
    );
    let public = "OSC_PUBLIC_ROOT: set but not used, because OSC_API_KEY_REQUIRED is not true";
    assert_eq!(warnings(&[("OSC_PUBLIC_ROOT", "true")], ""), [public]);
    let file = "OSC_ENV_FILE: set but not used, because it is read only from the process environment";
    assert_eq!(warnings(&[], "OSC_ENV_FILE=other\n"), [file]);
    assert_eq!(
        warnings(&[("OSC_CLUSTER_NODE_ID", "'n1'")], ""),
        [
            "OSC_CLUSTER_NODE_ID: the value begins and ends with a quote, which is part of the value (container \
             runtimes keep quotes in env files)"
        ]
    );
}

/// A skipped statement might be the one that requires an API key.
#[test]
fn a_statement_that_cannot_be_parsed_is_an_error() {
    let file = format!("\nOSC_HOTS='1' {CANARY}\nOSC_HOST_PORT=x\nOSC_API_KEY_REQUIRED=\"true\n");
    assert_eq!(
        read(&[], &file).expect_err("it has errors").to_string(),
        ".env: the statement that starts in line 2 cannot be parsed\n\
         .env: the statement that starts in line 4 cannot be parsed\n\
         OSC_HOST_PORT: \"x\" is not a port (allowed: 1 to 65535)"
    );
}
