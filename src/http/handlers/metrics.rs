//! `/metrics`: the metrics of this node, for Prometheus. The names of the Python server come first.

use std::collections::BTreeMap;

use super::{health, system};
use crate::http::call::Call;
use crate::http::response::Response;
use crate::http::settings::Settings;
use crate::limits::WRITES_QUEUED_MAX;
use crate::service::{Federation, Member, Service};
use crate::telemetry::{
    Exposition, METHODS, METRICS_CONTENT_TYPE, ProcessStats, RequestLabels, dropped_lines_count,
};

/// Error types whose counters exist from the start, for the entry endpoints and for unknown paths: an increase is
/// invisible to a query if the counter appears only with its first error.
const ERRORS_TO_WATCH: [&str; 3] = ["internal", "unavailable", "no_space"];

/// Handles `GET /metrics`.
pub(in crate::http) async fn metrics(call: Call<'_>) -> Result<Response, Response> {
    let Call { settings, service, .. } = call;
    let mut exposition = Exposition::default();
    requests(settings, &mut exposition);
    // The other metrics matter most while the database does not respond.
    if let Ok(count) = service.statistics.entries_count().await {
        exposition.gauge("osc_config_entries_total", "Entries stored on this node.").with_count(&[], count);
    }
    cluster(service, &mut exposition);
    components(service, &mut exposition);
    guard(service, &mut exposition);
    server(settings, service, &mut exposition);
    if let Some(stats) = service.statistics.process_stats().await {
        process(stats, &mut exposition);
    }
    let mut response = Response::json(200, exposition.encode());
    response.content_type = Some(METRICS_CONTENT_TYPE);
    Ok(response)
}

fn requests(settings: &Settings, exposition: &mut Exposition) {
    let executors = &settings.executors;
    let endpoints = executors.endpoints();
    let counts = executors.requests();
    let help = "Completed requests; 499 counts clients that disconnected before the response.";
    let mut samples = exposition.counter("osc_http_requests_total", help);
    for (request, &count) in &counts {
        let (method, status) = (METHODS[request.method], request.status.to_string());
        let labels =
            [("method", method), ("endpoint", endpoints[request.endpoint]), ("status_code", &status)];
        samples = samples.with_count(&labels, count);
    }
    let help =
        "Time from the request head to the response; responses served directly from memory count as zero.";
    let mut samples = exposition.histogram("osc_http_request_duration_seconds", help);
    for ((endpoint, method), histogram) in &executors.durations() {
        let labels = [("method", METHODS[*method]), ("endpoint", endpoints[*endpoint])];
        samples = samples.with_durations(&labels, histogram);
    }
    operations(endpoints, &counts, exposition);
    let mut samples = exposition.gauge("osc_connections", "Open connections, by executor.");
    for (index, count) in executors.connections().into_iter().enumerate() {
        samples = samples.with_count(&[("executor", &index.to_string())], count);
    }
    exposition
        .gauge("osc_connections_limit", "Limit of open connections on all executors together.")
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
        let help = "Expiry of the server certificate, in seconds since unix epoch.";
        exposition.gauge("osc_tls_certificate_expiry_seconds", help).with_count(&[], expiry);
    }
    responses(settings, exposition);
}

fn responses(settings: &Settings, exposition: &mut Exposition) {
    let responses = &settings.response_budget;
    exposition
        .gauge(
            "osc_answers_waiting_bytes",
            "Memory held by large responses, and by responses that clients do not read.",
        )
        .with_count(&[], responses.held_bytes() as u64);
    exposition
        .gauge(
            "osc_answers_waiting_bytes_limit",
            "Limit of osc_answers_waiting_bytes; large responses above it are refused with 503.",
        )
        .with_count(&[], responses.bytes_max() as u64);
    exposition
        .counter(
            "osc_answers_refused_total",
            "Large responses refused because of osc_answers_waiting_bytes_limit.",
        )
        .with_count(&[], responses.refused_count());
    exposition
        .counter(
            "osc_answers_dropped_total",
            "Responses to slow clients dropped to free memory for other connections.",
        )
        .with_count(&[], responses.evicted_count());
}

/// Requests again, by what they did.
fn operations(endpoints: &[&str], counts: &BTreeMap<RequestLabels, u64>, exposition: &mut Exposition) {
    let operations = sums(counts, |request| Some((operation(endpoints, request)?, outcome(request.status))));
    let mut samples = exposition.counter("osc_config_operations_total", "Operations on entries.");
    for ((operation, status), &count) in &operations {
        samples = samples.with_count(&[("operation", operation), ("status", status)], count);
    }
    let mut errors = sums(counts, |request| Some((endpoints[request.endpoint], error_type(request.status)?)));
    for endpoint in ["unmatched", "/configs", "/configs/{key}"] {
        for error_type in ERRORS_TO_WATCH {
            errors.entry((endpoint, error_type)).or_default();
        }
    }
    let mut samples = exposition.counter("osc_api_errors_total", "Error responses.");
    for ((endpoint, error_type), &count) in &errors {
        samples = samples.with_count(&[("endpoint", endpoint), ("error_type", error_type)], count);
    }
    let encryptions = sums(counts, |request| {
        let is_done = (200..300).contains(&request.status);
        Some(match operation(endpoints, request)? {
            "create" | "update" if is_done => "encrypt",
            "read" if is_done => "decrypt",
            _ => return None,
        })
    });
    let help = "Values encrypted, and values decrypted for reads of single entries.";
    let mut samples = exposition.counter("osc_encryption_operations_total", help);
    for (operation, &count) in &encryptions {
        samples = samples.with_count(&[("operation", operation)], count);
    }
}

fn cluster(service: &Service, exposition: &mut Exposition) {
    let Some(view) = service.cluster() else { return };
    let members = view.members();
    let members = || members.iter().filter(|member| member.state != "self");
    let healthy = members().filter(|member| member.state == "healthy").count();
    exposition.gauge("osc_cluster_nodes_healthy", "Peers that respond.").with_count(&[], healthy as u64);
    exposition
        .gauge("osc_cluster_nodes_total", "Peers in the settings.")
        .with_count(&[], members().count() as u64);
    let refused = members().filter(|member| member.state == "refused").count();
    exposition
        .gauge("osc_cluster_peers_refused", "Peers that respond, but with which there is no replication.")
        .with_count(&[], refused as u64);
    exposition
        .counter(
            "osc_cluster_credentials_refused_total",
            "Requests refused because of their node credentials.",
        )
        .with_count(&[], service.authentication.nodes().refused_count());
    exposition
        .counter(
            "osc_cluster_changes_refused_total",
            "Changes of peers refused because their versions are ahead of this node's clock.",
        )
        .with_count(&[], view.clocks().refused_count());
    let duplicates = service.federation().map_or(0, Federation::duplicates_count);
    exposition
        .gauge("osc_cluster_duplicate_names", "Names found on several nodes since the start.")
        .with_count(&[], duplicates as u64);
    exposition
        .histogram("osc_cluster_sync_duration_seconds", "Duration of anti-entropy rounds with a peer.")
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
    by_peer(exposition, "osc_cluster_peer_up", "Whether a peer responds.", &|member| {
        Some(f64::from(u8::from(member.state == "healthy")))
    });
    by_peer(
        exposition,
        "osc_cluster_peer_lag_seconds",
        "Age of the oldest local change that a peer has not confirmed.",
        &|member| member.lag_ms.map(seconds),
    );
    by_peer(
        exposition,
        "osc_cluster_peer_outbox_length",
        "Local changes that a peer has not confirmed.",
        &|member| member.outbox_length.and_then(|length| u32::try_from(length).ok()).map(f64::from),
    );
    by_peer(
        exposition,
        "osc_cluster_peer_synced_seconds",
        "Time since a peer was last in sync.",
        &|member| member.synced_ms.map(seconds),
    );
}

fn components(service: &Service, exposition: &mut Exposition) {
    let stats = service.statistics.snapshot();
    let mut counter = |name, help, count| {
        exposition.counter(name, help).with_count(&[], count);
    };
    counter("osc_key_derivations_started_total", "Key derivations started.", stats.keys.derivations_started);
    counter(
        "osc_key_derivations_completed_total",
        "Key derivations completed successfully.",
        stats.keys.derivations_completed,
    );
    let writer = service.statistics.engine_counts();
    counter(
        "osc_store_commits_total",
        "Transactions, each with all writes that were waiting.",
        writer.commits.get(),
    );
    counter("osc_store_writes_total", "Writes and other jobs in those transactions.", writer.jobs.get());
    counter("osc_store_changes_total", "Committed changes of entries.", writer.changes.get());
    exposition
        .gauge("osc_store_revision", "Revision of the last change.")
        .with_count(&[], service.statistics.revision().number().unsigned_abs());
    exposition
        .histogram("osc_store_commit_duration_seconds", "Duration of transactions, including disk I/O.")
        .with_durations(&[], &writer.durations());
    exposition
        .gauge("osc_store_wal_bytes", "Size of the write-ahead log after the last transaction.")
        .with_count(&[], writer.wal_bytes());
    exposition
        .gauge(
            "osc_store_checkpoint_blocked",
            "Whether a transaction of another process prevents the checkpoint of the write-ahead log.",
        )
        .with_count(&[], u64::from(writer.is_checkpoint_blocked()));
    exposition
        .gauge("osc_key_cache_keys", "Derived keys in the cache.")
        .with_count(&[("tier", "proven")], stats.keys.proven as u64)
        .with_count(&[("tier", "unproven")], stats.keys.unproven as u64)
        .with_count(&[("tier", "pending")], stats.keys.pending as u64);
    exposition
        .gauge("osc_queue_length", "Jobs waiting for a thread.")
        .with_count(&[("queue", "derive")], stats.derivations_queued as u64)
        .with_count(&[("queue", "read")], stats.reads_queued as u64)
        .with_count(&[("queue", "write")], stats.writes_queued as u64);
    exposition
        .gauge("osc_queue_limit", "Limit of jobs waiting for a thread; further ones are refused with 503.")
        .with_count(&[("queue", "derive")], stats.derivations_queued_max as u64)
        .with_count(&[("queue", "read")], stats.reads_queued_max as u64)
        .with_count(&[("queue", "write")], WRITES_QUEUED_MAX as u64);
    exposition
        .gauge("osc_cache_bytes", "Memory of cached sealed entries.")
        .with_count(&[("cache", "rows")], stats.rows_cached_bytes as u64)
        .with_count(&[("cache", "pages")], stats.pages_cached_bytes as u64);
    exposition
        .gauge("osc_cache_items", "Entry keys with cached rows, and cached list pages.")
        .with_count(&[("cache", "rows")], stats.rows_cached as u64)
        .with_count(&[("cache", "pages")], stats.pages_cached as u64);
}

fn guard(service: &Service, exposition: &mut Exposition) {
    let mut failures =
        exposition.counter("osc_auth_failures_total", "Failed keys, and names tried with failed keys.");
    for (kind, failures_count, _) in service.statistics.guard().counts() {
        failures = failures.with_count(&[("kind", kind)], failures_count);
    }
    let help = "Requests refused after too many failed keys.";
    let mut refusals = exposition.counter("osc_auth_refusals_total", help);
    for (kind, _, refusals_count) in service.statistics.guard().counts() {
        refusals = refusals.with_count(&[("kind", kind)], refusals_count);
    }
}

fn server(settings: &Settings, service: &Service, exposition: &mut Exposition) {
    let is_healthy = health::health_problems(settings, service).is_empty();
    exposition
        .gauge("osc_healthy", "Whether /health responds with 200.")
        .with_count(&[], u64::from(is_healthy));
    let is_ready = system::not_ready_reason(settings, service).is_none();
    exposition.gauge("osc_ready", "Whether /ready responds with 200.").with_count(&[], u64::from(is_ready));
    exposition
        .gauge("osc_build_info", "Version and I/O engine of this server.")
        .with_count(&[("version", env!("CARGO_PKG_VERSION")), ("engine", settings.engine)], 1);
    exposition
        .gauge("osc_executors", "Threads that serve requests.")
        .with_count(&[], settings.executors.count() as u64);
    exposition
        .gauge("osc_uptime_seconds", "Time since the server started.")
        .with(&[], service.statistics.uptime().as_secs_f64());
    exposition
        .counter("osc_log_lines_dropped_total", "Log lines dropped because the log could not keep up.")
        .with_count(&[], dropped_lines_count());
}

/// Writes the process metrics, with the names, units and texts that all Prometheus clients use.
fn process(stats: ProcessStats, exposition: &mut Exposition) {
    exposition
        .counter("process_cpu_seconds_total", "Total user and system CPU time spent in seconds.")
        .with(&[], stats.cpu_seconds);
    let mut gauge = |name, help, count| {
        exposition.gauge(name, help).with_count(&[], count);
    };
    gauge("process_resident_memory_bytes", "Resident memory size in bytes.", stats.resident_bytes);
    gauge("process_virtual_memory_bytes", "Virtual memory size in bytes.", stats.virtual_bytes);
    gauge("process_open_fds", "Number of open file descriptors.", stats.open_fds);
    if let Some(fds_max) = stats.fds_max {
        gauge("process_max_fds", "Maximum number of open file descriptors.", fds_max);
    }
    exposition
        .gauge("process_start_time_seconds", "Start time of the process since unix epoch in seconds.")
        .with(&[], stats.start_seconds);
}

/// Sums the counts by the key that `key` derives from the labels; labels without one are skipped.
fn sums<K: Ord>(
    counts: &BTreeMap<RequestLabels, u64>,
    key: impl Fn(&RequestLabels) -> Option<K>,
) -> BTreeMap<K, u64> {
    let mut sums = BTreeMap::new();
    for (request, count) in counts {
        if let Some(key) = key(request) {
            *sums.entry(key).or_default() += count;
        }
    }
    sums
}

fn operation(endpoints: &[&str], request: &RequestLabels) -> Option<&'static str> {
    Some(match (endpoints[request.endpoint], METHODS[request.method]) {
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
        // An unknown method or version of HTTP is not an error of the server.
        501 | 505 => "not_implemented",
        _ => "internal",
    })
}
