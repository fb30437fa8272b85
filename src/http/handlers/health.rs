//! `/health`: whether this node works. Whether it should receive requests is `/ready`.

use serde::Serialize;

use crate::http::call::Call;
use crate::http::error::unhealthy;
use crate::http::response::Response;
use crate::http::settings::Settings;
use crate::limits::EXECUTOR_TIMEOUT;
use crate::service::Service;

#[derive(Serialize)]
struct Health {
    status: &'static str,
    engine: &'static str,
}

/// Handles `GET /health`.
pub(in crate::http) fn health(call: &Call<'_>) -> Response {
    let Call { settings, service, .. } = call;
    let reasons = health_problems(settings, service);
    if !reasons.is_empty() {
        return unhealthy(&reasons);
    }
    Response::serialized(200, &Health { status: "healthy", engine: settings.engine })
}

/// Returns the problems of this node; empty if it is healthy.
pub(super) fn health_problems(settings: &Settings, service: &Service) -> Vec<String> {
    let mut problems = service.statistics.health_problems();
    let stalled = settings.executors.stalled(EXECUTOR_TIMEOUT);
    if !stalled.is_empty() {
        problems.push(format!("executors do not run: {stalled:?}"));
    }
    problems
}
