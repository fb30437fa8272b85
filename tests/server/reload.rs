//! SIGHUP: what changes while the server runs, and what does not.

use std::fs;
use std::path::Path;

use crate::support::{Launch, Server, USER_KEY, eventually};

fn write(directory: &Path, name: &str, text: &str) {
    fs::write(directory.join(name), text).expect("written");
}

/// Sends SIGHUP and waits until the log reports this many reloads.
fn reload(server: &Server, count: usize) {
    server.signal("HUP");
    eventually("the configuration is reloaded", || {
        server.log().matches("configuration reloaded").count() == count
    });
}

fn status(server: &Server, api_key: &str) -> u16 {
    server.connect().send("GET", "/configs", &[("X-User-Key", USER_KEY), ("X-API-Key", api_key)], None).status
}

#[test]
fn clients_move_from_an_old_api_key_to_a_new_one() {
    let launch = Launch::new().set("OSC_API_KEY_REQUIRED", "true").set("OSC_API_KEY_FILE", "keys");
    write(launch.directory.path(), "keys", "old-canary\n");
    let server = launch.start();
    let mut kept = server.connect();
    let mut status_with = |api_key: &str| {
        let headers = [("X-User-Key", USER_KEY), ("X-API-Key", api_key)];
        kept.send("GET", "/configs", &headers, None).status
    };
    assert_eq!((status_with("old-canary"), status_with("new-canary")), (200, 403));
    for (round, keys, old, new) in
        [(1, "old-canary\nnew-canary\n", 200, 200), (2, "# moved\nnew-canary", 403, 200)]
    {
        write(server.directory.path(), "keys", keys);
        reload(&server, round);
        assert_eq!((status_with("old-canary"), status_with("new-canary")), (old, new), "{keys}");
    }
    assert!(!server.log().contains("canary"), "{}", server.log());
}

#[test]
fn invalid_settings_change_nothing() {
    let launch = Launch::new().set("OSC_API_KEY_REQUIRED", "true").set("OSC_API_KEY_FILE", "keys");
    write(launch.directory.path(), "keys", "a-key-of-a-test\n");
    let mut server = launch.start();
    for (keys, dotenv, errors) in [
        ("", "", &["OSC_API_KEY_FILE"][..]),
        ("b\u{e4}d canary", "OSC_LOG_LEVEL=loud\nOSC_HOST_PORT=x\n", &["OSC_API_KEY_FILE", "OSC_LOG_LEVEL"]),
    ] {
        write(server.directory.path(), "keys", keys);
        write(server.directory.path(), ".env", dotenv);
        let before = server.log().matches("keeping the previous settings").count();
        server.signal("HUP");
        eventually("all errors are logged", || {
            let log = server.log();
            log.matches("keeping the previous settings").count() >= before + errors.len()
                && errors.iter().all(|error| log.contains(error))
        });
        assert_eq!((status(&server, "a-key-of-a-test"), status(&server, "canary")), (200, 403));
    }
    assert!(!server.log().contains("canary"), "{}", server.log());
    assert!(server.stop().success());
}

#[test]
fn the_log_level_changes_and_other_settings_need_a_restart() {
    let launch = Launch::new();
    write(launch.directory.path(), ".env", "OSC_LOG_LEVEL=INFO\n");
    let server = launch.start();
    let is_logged = |text: &str| server.log().contains(text);
    assert_eq!(server.get("/first").status, 404);
    eventually("INFO is logged", || is_logged("path=\"/first\""));
    write(server.directory.path(), ".env", "OSC_LOG_LEVEL=DEBUG\nOSC_MIN_USER_KEY_LENGTH=12\n");
    reload(&server, 1);
    assert!(is_logged("these settings require a restart"), "{}", server.log());
    assert!(is_logged("OSC_MIN_USER_KEY_LENGTH"), "{}", server.log());
    assert_eq!(server.get("/configs").status, 200, "shorter keys are still accepted");
    write(server.directory.path(), ".env", "OSC_LOG_LEVEL=ERROR\n");
    server.signal("HUP");
    let mut number = 0;
    eventually("INFO is no longer logged", || {
        number += 1;
        let path = format!("/later-{number}");
        assert_eq!(server.get(&path).status, 404);
        // Lines that were logged before this response have been written when the second one arrives.
        assert_eq!(server.get("/health").status, 200);
        number > 20 && !is_logged(&path)
    });
}

/// Whatever happens to the file, a server that requires a key keeps requiring one until it is restarted.
#[test]
fn an_api_key_stays_required() {
    let launch = Launch::new();
    let valid = "OSC_API_KEY_REQUIRED=true\nOSC_API_KEY=a-key-of-a-test\n";
    write(launch.directory.path(), ".env", valid);
    let server = launch.start();
    assert_eq!((status(&server, "a-key-of-a-test"), status(&server, "b-key-of-a-test")), (200, 403));
    write(server.directory.path(), ".env", &valid.replace("=true", "=\"true"));
    server.signal("HUP");
    eventually("the error is logged", || {
        server.log().contains("the statement that starts in line 1 cannot be parsed")
    });
    assert_eq!((status(&server, "a-key-of-a-test"), status(&server, "b-key-of-a-test")), (200, 403));
    fs::remove_file(server.directory.path().join(".env")).expect("removed");
    for round in 1..=2 {
        reload(&server, round);
        assert!(server.log().contains("cannot stop requiring an API key"));
        assert_eq!((status(&server, "a-key-of-a-test"), status(&server, "b-key-of-a-test")), (200, 403));
    }
    write(server.directory.path(), ".env", &valid.replace("a-key-of-a-test", "b-key-of-a-test"));
    reload(&server, 3);
    assert_eq!((status(&server, "a-key-of-a-test"), status(&server, "b-key-of-a-test")), (403, 200));
}
