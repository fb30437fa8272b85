//! The root: what this service is.

use crate::http::answer::Answer;
use crate::http::app::Settings;

/// `GET /`
pub(in crate::http) fn root(settings: &Settings) -> Answer {
    let body = format!(
        concat!(
            r#"{{"service":"OpenSecureConf API","version":"2.0.0","#,
            r#""features":["encryption","multithreading","async","api-key-auth","clustering","environments"],"#,
            r#""api_key_required":{},"cluster_enabled":false,"cluster_mode":null,"#,
            r#""endpoints":{{"create":"POST /configs","read":"GET /configs/{{key}}","#,
            r#""update":"PUT /configs/{{key}}","delete":"DELETE /configs/{{key}}","#,
            r#""list":"GET /configs","cluster_status":"GET /cluster/status"}}}}"#,
        ),
        settings.api_key.is_some(),
    );
    Answer::json(200, body.into_bytes())
}
