//! Server-sent events as the SDK reads them: every frame ends with a blank line, a comment breaks every
//! silence, and the three characters on which its line reader would cut a frame are escaped.

use std::borrow::Cow;
use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::Stream;
use serde::Serialize;

/// Far below the 60 seconds after which a silent stream is given up by the SDK.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// One frame.
#[derive(Debug, Clone)]
pub(super) struct Frame {
    event: Cow<'static, str>,
    id: Option<String>,
    data: String,
}

impl Frame {
    pub(super) fn new<T: Serialize>(event: impl Into<Cow<'static, str>>, data: &T) -> Self {
        let json = serde_json::to_string(data).unwrap_or_else(|_| "{}".to_owned());
        Self { event: event.into(), id: None, data: escape(&json) }
    }

    /// What a client that comes back names as the last it has.
    #[must_use]
    pub(super) fn with_id(mut self, id: String) -> Self {
        self.id = Some(id);
        self
    }

    fn into_event(self) -> Event {
        let event = Event::default().event(self.event).data(self.data);
        match self.id {
            Some(id) => event.id(id),
            None => event,
        }
    }
}

/// httpx splits lines on these, also inside a JSON string.
fn escape(json: &str) -> String {
    json.replace('\u{85}', "\\u0085").replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029")
}

/// The stream as an answer. It ends when `frames` does, and is dropped when the client goes.
pub(super) fn response<S>(frames: S) -> Response
where
    S: Stream<Item = Frame> + Send + 'static,
{
    use futures::StreamExt as _;
    let events = frames.map(|frame| Ok::<_, Infallible>(frame.into_event()));
    let mut response =
        Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE).text("keep-alive")).into_response();
    let no_store = http::HeaderValue::from_static("no-store");
    response.headers_mut().insert(http::header::CACHE_CONTROL, no_store);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_breaking_characters_are_escaped_and_mean_the_same() {
        let text = "a\u{85}b\u{2028}c\u{2029}d\ne";
        let frame = Frame::new("stdout", &text);
        assert!(frame.data.is_ascii(), "{}", frame.data);
        assert_eq!(serde_json::from_str::<String>(&frame.data).unwrap(), text);
    }
}
