//! `/metrics`: all numbers of this node, for Prometheus. The original's names come first.

use std::collections::BTreeMap;

use super::{health, system};
use crate::http::app::Settings;
use crate::http::response::Response;
use crate::limits::WRITES_QUEUED_MAX;
use crate::service::{Member, Service};
use crate::telemetry::{
    Exposition, METHODS, METRICS_CONTENT_TYPE, ProcessNumbers, RequestLabels, dropped_lines_count,
};

/// What is counted from the start, for the endpoints of entries and for requests that came no further: nobody sees
/// a counter grow that appears with its first error.
const ERRORS_TO_WATCH: [&str; 3] = ["internal", "unavailable", "no_space"];

/// `GET /metrics`
pub(in crate::http) async fn metrics(settings: &Settings, service: &Service) -> Response {
    let mut exposition = Exposition::default();
    requests(settings, &mut exposition);
    // All the rest is wanted above all when the database does not answer.
    if let Ok(count) = service.entries_count().await {
        exposition.gauge("osc_config_entries_total", "Entries that this node has.").with_count(&[], count);
    }
    cluster(settings, service, &mut exposition);
    parts(service, &mut exposition);
    guard(service, &mut exposition);
    program(settings, service, &mut exposition);
    if let Some(numbers) = service.process_numbers().await {
        process(numbers, &mut exposition);
    }
    let mut answer = Response::json(200, exposition.encode());
    answer.content_type = Some(METRICS_CONTENT_TYPE);
    answer
}

fn requests(settings: &Settings, exposition: &mut Exposition) {
    let executors = &settings.executors;
    let endpoints = executors.endpoints();
    let counts = executors.requests();
    let help = "Requests that were answered; 499 stands for clients that left before.";
    let mut samples = exposition.counter("osc_http_requests_total", help);
    for (of, &count) in &counts {
        let (method, status) = (METHODS[of.method], of.status.to_string());
        let labels = [("method", method), ("endpoint", endpoints[of.endpoint]), ("status_code", &status)];
        samples = samples.with_count(&labels, count);
    }
    let help =
        "From the head of a request to its answer; what is answered from memory at once counts as zero.";
    let mut samples = exposition.histogram("osc_http_request_duration_seconds", help);
    for ((endpoint, method), histogram) in &executors.durations() {
        let labels = [("method", METHODS[*method]), ("endpoint", endpoints[*endpoint])];
        samples = samples.with_durations(&labels, histogram);
    }
    let operations = sums(&counts, |of| Some((operation(endpoints, of)?, outcome(of.status))));
    let mut samples = exposition.counter("osc_config_operations_total", "Operations on entries.");
    for ((operation, status), &count) in &operations {
        samples = samples.with_count(&[("operation", operation), ("status", status)], count);
    }
    let mut errors = sums(&counts, |of| Some((endpoints[of.endpoint], error_type(of.status)?)));
    for endpoint in ["unmatched", "/configs", "/configs/{key}"] {
        for error_type in ERRORS_TO_WATCH {
            errors.entry((endpoint, error_type)).or_default();
        }
    }
    let mut samples = exposition.counter("osc_api_errors_total", "Answers that say that something is wrong.");
    for ((endpoint, error_type), &count) in &errors {
        samples = samples.with_count(&[("endpoint", endpoint), ("error_type", error_type)], count);
    }
    let encryptions = sums(&counts, |of| {
        let is_done = (200..300).contains(&of.status);
        Some(match operation(endpoints, of)? {
            "create" | "update" if is_done => "encrypt",
            "read" if is_done => "decrypt",
            _ => return None,
        })
    });
    let help = "Values that were encrypted, and decrypted for a read of one entry.";
    let mut samples = exposition.counter("osc_encryption_operations_total", help);
    for (operation, &count) in &encryptions {
        samples = samples.with_count(&[("operation", operation)], count);
    }
    let mut samples = exposition.gauge("osc_connections", "Connections that are open, by executor.");
    for (index, count) in executors.connections().into_iter().enumerate() {
        samples = samples.with_count(&[("executor", &index.to_string())], count);
    }
    exposition
        .gauge("osc_connections_limit", "Connections that may be open, on all executors together.")
        .with_count(&[], settings.connections_max as u64);
    let (refused, refused_of_address) = executors.refused_connections();
    exposition
        .counter("osc_connections_refused_total", "Connections refused because of a limit.")
        .with_count(&[("limit", "server")], refused)
        .with_count(&[("limit", "address")], refused_of_address);
    exposition
        .counter("osc_tls_handshakes_failed_total", "TLS handshakes that failed.")
        .with_count(&[], executors.failed_handshakes());
    let expiry = settings.certificate_expiry.get();
    if expiry > 0 {
        let help = "When the certificate of this server expires, in seconds since unix epoch.";
        exposition.gauge("osc_tls_certificate_expiry_seconds", help).with_count(&[], expiry);
    }
    let answers = &settings.answers;
    exposition
        .gauge(
            "osc_answers_waiting_bytes",
            "Memory of large answers, and of answers that clients do not take.",
        )
        .with_count(&[], answers.held_bytes() as u64);
    exposition
        .gauge(
            "osc_answers_waiting_bytes_limit",
            "The limit of that memory; large answers beyond it are 503.",
        )
        .with_count(&[], answers.bytes_max() as u64);
    exposition
        .counter("osc_answers_refused_total", "Large answers that there was no memory for.")
        .with_count(&[], answers.refused_count());
    exposition
        .counter("osc_answers_dropped_total", "Answers that slow clients lost to others, for lack of memory.")
        .with_count(&[], answers.evicted_count());
}

fn cluster(settings: &Settings, service: &Service, exposition: &mut Exposition) {
    let Some(view) = service.cluster() else { return };
    let members = view.members();
    let members = || members.iter().filter(|member| member.state != "self");
    let healthy = members().filter(|member| member.state == "healthy").count();
    exposition.gauge("osc_cluster_nodes_healthy", "Peers that answer.").with_count(&[], healthy as u64);
    exposition
        .gauge("osc_cluster_nodes_total", "Peers in the settings.")
        .with_count(&[], members().count() as u64);
    let refused = members().filter(|member| member.state == "refused").count();
    exposition
        .gauge("osc_cluster_peers_refused", "Peers that answer, and with which nothing is exchanged.")
        .with_count(&[], refused as u64);
    exposition
        .counter(
            "osc_cluster_credentials_refused_total",
            "Requests that were refused for their node credentials.",
        )
        .with_count(&[], settings.node_auth.refused_count());
    exposition
        .counter(
            "osc_cluster_changes_refused_total",
            "Changes of peers refused as ahead of this node's clock.",
        )
        .with_count(&[], view.clocks().refused_count());
    exposition
        .histogram("osc_cluster_sync_duration_seconds", "Comparisons with a peer.")
        .with_durations(&[], &view.comparisons());
    let by_peer = |exposition: &mut Exposition, name, help, value: &dyn Fn(&Member) -> Option<f64>| {
        let mut samples = exposition.gauge(name, help);
        for member in members() {
            if let Some(value) = value(member) {
                samples = samples.with(&[("peer", &member.address)], value);
            }
        }
    };
    let seconds = |milliseconds: u64| std::time::Duration::from_millis(milliseconds).as_secs_f64();
    by_peer(exposition, "osc_cluster_peer_up", "Whether a peer answers.", &|member| {
        Some(f64::from(u8::from(member.state == "healthy")))
    });
    by_peer(
        exposition,
        "osc_cluster_peer_lag_seconds",
        "How long the oldest own change that a peer has not confirmed has waited.",
        &|member| member.lag_ms.map(seconds),
    );
    by_peer(
        exposition,
        "osc_cluster_peer_outbox_length",
        "Own changes that a peer has not confirmed.",
        &|member| member.outbox_length.and_then(|length| u32::try_from(length).ok()).map(f64::from),
    );
    by_peer(
        exposition,
        "osc_cluster_peer_synced_seconds",
        "How long ago a peer was last found to hold the same.",
        &|member| member.synced_ms.map(seconds),
    );
}

fn parts(service: &Service, exposition: &mut Exposition) {
    let numbers = service.numbers();
    let mut counter = |name, help, count| {
        exposition.counter(name, help).with_count(&[], count);
    };
    counter(
        "osc_key_derivations_started_total",
        "Derivations of keys that began.",
        numbers.keys.derivations_started,
    );
    counter(
        "osc_key_derivations_completed_total",
        "Derivations that came to a key.",
        numbers.keys.derivations_completed,
    );
    let writer = service.writer_counts();
    counter(
        "osc_store_commits_total",
        "Transactions, each for all writes that waited.",
        writer.commits.get(),
    );
    counter("osc_store_writes_total", "Writes and other jobs in those transactions.", writer.jobs.get());
    exposition
        .histogram("osc_store_commit_duration_seconds", "Transactions, with the time that the disk took.")
        .with_durations(&[], &writer.durations());
    exposition
        .gauge("osc_store_wal_bytes", "Size of the write-ahead log after the last transaction.")
        .with_count(&[], writer.wal_bytes());
    exposition
        .gauge(
            "osc_store_checkpoint_blocked",
            "Whether a transaction of another program keeps the write-ahead log from being emptied.",
        )
        .with_count(&[], u64::from(writer.is_checkpoint_blocked()));
    exposition
        .gauge("osc_key_cache_keys", "Derived keys in memory.")
        .with_count(&[("tier", "proven")], numbers.keys.proven as u64)
        .with_count(&[("tier", "unproven")], numbers.keys.unproven as u64)
        .with_count(&[("tier", "pending")], numbers.keys.pending as u64);
    exposition
        .gauge("osc_queue_length", "Jobs that wait for a thread.")
        .with_count(&[("queue", "derive")], numbers.derivations_queued as u64)
        .with_count(&[("queue", "read")], numbers.reads_queued as u64)
        .with_count(&[("queue", "write")], numbers.writes_queued as u64);
    exposition
        .gauge("osc_queue_limit", "Jobs that may wait for a thread; what comes then is answered 503.")
        .with_count(&[("queue", "derive")], numbers.derivations_queued_max as u64)
        .with_count(&[("queue", "read")], numbers.reads_queued_max as u64)
        .with_count(&[("queue", "write")], WRITES_QUEUED_MAX as u64);
    exposition
        .gauge("osc_cache_bytes", "Memory of sealed entries.")
        .with_count(&[("cache", "rows")], numbers.rows_cached_bytes as u64)
        .with_count(&[("cache", "pages")], numbers.pages_cached_bytes as u64);
    exposition
        .gauge("osc_cache_items", "Entry keys whose rows are cached, and pages of lists.")
        .with_count(&[("cache", "rows")], numbers.rows_cached as u64)
        .with_count(&[("cache", "pages")], numbers.pages_cached as u64);
}

fn guard(service: &Service, exposition: &mut Exposition) {
    let mut failures =
        exposition.counter("osc_auth_failures_total", "Failed keys, and names tried with them.");
    for (kind, failures_count, _) in service.guard().counts() {
        failures = failures.with_count(&[("kind", kind)], failures_count);
    }
    let help = "Requests that were refused after too many failed keys.";
    let mut refusals = exposition.counter("osc_auth_refusals_total", help);
    for (kind, _, refusals_count) in service.guard().counts() {
        refusals = refusals.with_count(&[("kind", kind)], refusals_count);
    }
}

fn program(settings: &Settings, service: &Service, exposition: &mut Exposition) {
    let is_healthy = health::health_problems(settings, service).is_empty();
    exposition.gauge("osc_healthy", "Whether /health is 200.").with_count(&[], u64::from(is_healthy));
    let is_ready = system::obstacle(service).is_none();
    exposition.gauge("osc_ready", "Whether /ready is 200.").with_count(&[], u64::from(is_ready));
    exposition
        .gauge("osc_build_info", "Which program this is, and what its executors run on.")
        .with_count(&[("version", env!("CARGO_PKG_VERSION")), ("engine", settings.engine)], 1);
    exposition
        .gauge("osc_executors", "Threads that serve requests.")
        .with_count(&[], settings.executors.count() as u64);
    exposition.gauge("osc_uptime_seconds", "Time since the start.").with(&[], service.uptime().as_secs_f64());
    exposition
        .counter("osc_log_lines_dropped_total", "Lines of the log that could not be written in time.")
        .with_count(&[], dropped_lines_count());
}

/// Names, units and texts are those of all Prometheus clients.
fn process(numbers: ProcessNumbers, exposition: &mut Exposition) {
    exposition
        .counter("process_cpu_seconds_total", "Total user and system CPU time spent in seconds.")
        .with(&[], numbers.cpu_seconds);
    let mut gauge = |name, help, count| {
        exposition.gauge(name, help).with_count(&[], count);
    };
    gauge("process_resident_memory_bytes", "Resident memory size in bytes.", numbers.resident_bytes);
    gauge("process_virtual_memory_bytes", "Virtual memory size in bytes.", numbers.virtual_bytes);
    gauge("process_open_fds", "Number of open file descriptors.", numbers.open_fds);
    if let Some(fds_max) = numbers.fds_max {
        gauge("process_max_fds", "Maximum number of open file descriptors.", fds_max);
    }
    exposition
        .gauge("process_start_time_seconds", "Start time of the process since unix epoch in seconds.")
        .with(&[], numbers.start_seconds);
}

/// Sums of counts by what `key` makes of them.
fn sums<K: Ord>(
    counts: &BTreeMap<RequestLabels, u64>,
    key: impl Fn(&RequestLabels) -> Option<K>,
) -> BTreeMap<K, u64> {
    let mut sums = BTreeMap::new();
    for (of, count) in counts {
        if let Some(key) = key(of) {
            *sums.entry(key).or_default() += count;
        }
    }
    sums
}

fn operation(endpoints: &[&str], of: &RequestLabels) -> Option<&'static str> {
    Some(match (endpoints[of.endpoint], METHODS[of.method]) {
        ("/configs", "POST") => "create",
        ("/configs", "GET" | "HEAD") => "list",
        ("/configs/{key}", "GET" | "HEAD") => "read",
        ("/configs/{key}", "PUT") => "update",
        ("/configs/{key}", "DELETE") => "delete",
        _ => return None,
    })
}

fn outcome(status: u16) -> &'static str {
    match status {
        200..300 => "success",
        404 => "not_found",
        _ => "error",
    }
}

fn error_type(status: u16) -> Option<&'static str> {
    Some(match status {
        ..400 => return None,
        401 => "authentication",
        403 => "forbidden",
        404 => "not_found",
        409 | 412 => "conflict",
        422 => "validation",
        429 => "rate_limit",
        499 => "client_gone",
        503 => "unavailable",
        507 => "no_space",
        400..=499 => "bad_request",
        // A method or a version of HTTP: what is not there is no fault of the server.
        501 | 505 => "not_implemented",
        _ => "internal",
    })
}
