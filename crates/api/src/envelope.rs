//! The three envelopes every JSON answer has.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// One object. Nothing may ever stand beside `data` unless the SDK contract asks for it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Data<T> {
    pub data: T,
}

/// A list. `page` is absent when the answer holds everything that matched.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct List<T> {
    pub data: Vec<T>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub page: Option<Page>,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Page {
    pub limit: u32,
    /// Hand it back as `cursor` to get what follows; null on the last page.
    pub next_cursor: Option<String>,
}

impl<T> List<T> {
    /// A list that is complete.
    pub fn whole(data: Vec<T>) -> Self {
        Self { data, page: None }
    }

    pub fn paged(data: Vec<T>, limit: u32, next_cursor: Option<String>) -> Self {
        Self { data, page: Some(Page { limit, next_cursor }) }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ErrorEnvelope {
    pub error: ErrorBody,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// One of the closed set of codes.
    pub code: String,
    /// What was wrong and what to do, for a person.
    pub message: String,
    /// Also in the header `X-Request-Id`.
    pub request_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub details: Option<serde_json::Value>,
    /// Whether the same request may succeed later.
    pub retryable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}
