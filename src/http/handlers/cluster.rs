//! `/cluster/...` of a node that stands alone.

use crate::http::answer::Answer;
use crate::http::app::{Settings, failed};
use crate::http::error::detail;
use crate::http::json::write_string;
use crate::limits::SALT_BYTES;
use crate::service::Service;
use crate::store::Adopted;

/// `GET /cluster/status`
pub(in crate::http) fn status() -> Answer {
    let body = r#"{"enabled":false,"mode":null,"node_id":null,"total_nodes":null,"healthy_nodes":null}"#;
    Answer::json(200, body.into())
}

/// `GET /cluster/health`
pub(in crate::http) fn health(settings: &Settings) -> Answer {
    let mut body = br#"{"status":"healthy","node_id":"#.to_vec();
    write_string(&settings.node_id, &mut body);
    body.push(b'}');
    Answer::json(200, body)
}

/// `GET /cluster/salt`
pub(in crate::http) fn read_salt(service: &Service) -> Answer {
    match service.salt() {
        None => detail(404, "Salt file not found on this node"),
        Some(salt) => Answer {
            status: 200,
            content_type: Some("application/octet-stream"),
            headers: vec![("content-disposition", "attachment; filename=encryption.salt".into())],
            body: salt.to_vec(),
        },
    }
}

/// `POST /cluster/salt`
pub(in crate::http) async fn adopt_salt(service: &Service, body: &[u8]) -> Result<Answer, Answer> {
    Ok(match service.adopt_salt(body.to_vec()).await.map_err(failed)? {
        Adopted::Created => Answer::json(
            200,
            format!(r#"{{"message":"Salt received and saved successfully","status":"created","size_bytes":{SALT_BYTES}}}"#)
                .into_bytes(),
        ),
        Adopted::Same => Answer::json(200, br#"{"message":"Salt already present and matches","status":"ok"}"#.to_vec()),
        Adopted::Differs => detail(409, "Salt file already exists and differs from received salt"),
        Adopted::WrongSize => {
            detail(400, &format!("Invalid salt size: {} bytes (expected {SALT_BYTES})", body.len()))
        }
    })
}
