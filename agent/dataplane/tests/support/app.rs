//! A server in the guest that tells what it was asked and answers as badly as a guest may.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// A request as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Arrived {
    pub(crate) line: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

#[derive(Clone, Default)]
pub(crate) struct App {
    pub(crate) arrived: Arc<Mutex<Vec<Arrived>>>,
}

impl App {
    pub(crate) fn serve(&self, listener: TcpListener) {
        let app = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(app.clone().serve_connection(stream));
            }
        });
    }

    pub(crate) async fn serve_connection<S>(self, stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = hyper::service::service_fn(move |request| {
            let app = self.clone();
            async move { Ok::<_, Infallible>(app.answer(request).await) }
        });
        let connection =
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        let _ = connection.with_upgrades().await;
    }

    pub(crate) fn last(&self) -> Arrived {
        self.arrived.lock().unwrap().last().expect("a request in the guest").clone()
    }

    pub(crate) fn count(&self) -> usize {
        self.arrived.lock().unwrap().len()
    }

    async fn answer(&self, mut request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path().to_owned();
        if path == "/ws" {
            return self.websocket(&mut request);
        }
        let (head, body) = request.into_parts();
        let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let line = format!("{} {}", head.method, head.uri);
        self.arrived.lock().unwrap().push(Arrived { line, headers: head.headers, body: body.clone() });
        let response = Response::builder();
        match path.as_str() {
            "/hostile" => response
                .header("x-frame-options", "DENY")
                .header("content-security-policy", "default-src 'self'; frame-ancestors 'none'")
                .header("content-security-policy", "frame-ancestors https://evil.example")
                .header("strict-transport-security", "max-age=9; includeSubDomains")
                .header("alt-svc", "h3=\":443\"")
                .header("clear-site-data", "\"*\"")
                .header("set-cookie", "a=1; Domain=sandbox.test; Path=/")
                .header("set-cookie", "__Host-miosa_pv=stolen; Path=/; Secure")
                .header("x-own", "kept")
                .body(full("hostile")),
            "/moved" => response.status(302).header("location", "http://169.254.169.254/").body(full("")),
            "/events" => {
                let events = futures::stream::unfold(0u32, |count| async move {
                    if count > 0 {
                        // Paced on purpose: the stream must not be held back.
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                    Some((Ok(Frame::data(Bytes::from(format!("data: {count}\n\n")))), count + 1))
                });
                response
                    .header("content-type", "text/event-stream")
                    .body(StreamBody::new(events.boxed()).boxed_unsync())
            }
            "/slow" => {
                // Slow on purpose.
                tokio::time::sleep(Duration::from_secs(2)).await;
                response.body(full("slow"))
            }
            "/switch" => response.status(101).header("upgrade", "websocket").body(full("")),
            _ => response.body(full(body)),
        }
        .unwrap()
    }

    /// Echoes bytes in capitals once switched; no frames, since nobody on the way looks into them.
    fn websocket(&self, request: &mut Request<Incoming>) -> Response<Body> {
        let line = format!("{} {}", request.method(), request.uri());
        let headers = request.headers().clone();
        self.arrived.lock().unwrap().push(Arrived { line, headers, body: Bytes::new() });
        if request.uri().query() == Some("refuse") {
            return Response::new(full("not today"));
        }
        let upgrade = hyper::upgrade::on(request);
        tokio::spawn(async move {
            let Ok(upgraded) = upgrade.await else { return };
            let mut socket = TokioIo::new(upgraded);
            let mut buffer = [0; 1024];
            while let Ok(count @ 1..) = socket.read(&mut buffer).await {
                buffer[..count].make_ascii_uppercase();
                if socket.write_all(&buffer[..count]).await.is_err() {
                    return;
                }
            }
        });
        Response::builder()
            .status(StatusCode::SWITCHING_PROTOCOLS)
            .header("connection", "upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
            .body(full(""))
            .unwrap()
    }
}

fn full(content: impl Into<Bytes>) -> Body {
    Full::new(content.into()).boxed_unsync()
}
