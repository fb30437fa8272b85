//! `/health`: whether the parts of this node work. Whether it should get requests is `/ready`.

use std::time::Duration;

use crate::http::app::Settings;
use crate::http::error::unhealthy;
use crate::http::json::write_string;
use crate::http::response::Response;
use crate::service::Service;

/// An executor that has not looked at its clock for so long is stuck; it does ten times a second.
const EXECUTOR_PATIENCE: Duration = Duration::from_secs(5);

/// `GET /health`
pub(in crate::http) fn health(settings: &Settings, service: &Service) -> Response {
    let reasons = health_problems(settings, service);
    if !reasons.is_empty() {
        return unhealthy(&reasons);
    }
    let mut body = b"{\"status\":\"healthy\",\"engine\":".to_vec();
    write_string(settings.engine, &mut body);
    body.push(b'}');
    Response::json(200, body)
}

/// What is wrong with this node, if anything is.
pub(super) fn health_problems(settings: &Settings, service: &Service) -> Vec<String> {
    let mut faults = service.faults();
    let stalled = settings.executors.stalled(EXECUTOR_PATIENCE);
    if !stalled.is_empty() {
        faults.push(format!("executors do not run: {stalled:?}"));
    }
    faults
}
