//! What a guest reads when the proxy answers in the place of its upstream.

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE};
use http::{HeaderValue, Response, StatusCode, Version};
use http_body_util::Full;
use roost_domain::audit::{Action, reason};

use super::body::ResponseBody;
use crate::egress::audit::Outcome;
use crate::egress::policy;

/// Why a request is not carried out, for the guest and for its row.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    /// One of `roost_domain::audit::reason`.
    pub(crate) reason: &'static str,
    /// Says what to do about it. Holds nothing secret.
    pub(crate) message: String,
    pub(crate) rule_id: Option<String>,
    /// Whether it was permitted and failed, as opposed to refused.
    pub(crate) failed: bool,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        Self { status, reason, message: message.into(), rule_id: None, failed: false }
    }

    pub(crate) fn failed(status: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        Self { failed: true, ..Self::new(status, reason, message) }
    }

    pub(crate) fn malformed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, reason::MALFORMED, message)
    }

    /// The end of the call in the audit trail.
    pub(crate) fn outcome(&self) -> Outcome {
        let outcome = Outcome::rejected(self.reason).with_detail(self.message.clone());
        Outcome {
            action: if self.failed { Action::Error } else { Action::Reject },
            rule_id: self.rule_id.clone(),
            status_code: Some(self.status.as_u16()),
            ..outcome
        }
    }

    /// What the guest reads.
    pub(crate) fn response(&self, version: Version) -> Response<ResponseBody> {
        let body = serde_json::json!({ "error": { "code": self.reason, "message": self.message } });
        let mut response = Response::new(ResponseBody::Left(Full::new(Bytes::from(body.to_string()))));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        // What follows a refused request on the connection may be the rest of an attack.
        if version < Version::HTTP_2 {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

impl From<policy::Refusal> for Refusal {
    fn from(refusal: policy::Refusal) -> Self {
        let rule_id = refusal.rule_id;
        Self { rule_id, ..Self::new(StatusCode::FORBIDDEN, refusal.reason, refusal.message) }
    }
}
