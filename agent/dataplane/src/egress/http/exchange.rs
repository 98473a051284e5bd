//! The story of one request: check, policy, credentials, intent, upstream, response.
//!
//! Every way out of it leaves exactly one row in the audit trail.

use std::error::Error as _;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use http::header::CONTENT_LENGTH;
use http::request::Parts;
use http::{Request, Response, StatusCode, Uri, Version};
use http_body::Body as _;
use http_body_util::Either;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::client::legacy;
use roost_daemon::telemetry::chain;
use roost_domain::audit::{Scheme, SecretUse, reason};
use roost_domain::sabotage::Defence;

use super::body::{RequestBody, ResponseBody, ResponseRow, UpstreamBody};
use super::check::{Checked, Place, check};
use super::client::{self, Speak};
use super::refusal::Refusal;
use super::{Connection, header, upgrade};
use crate::egress::audit::{Call, Outcome};
use crate::egress::credentials;
use crate::egress::policy::Decision;
use crate::egress::relay::TunnelRow;
use crate::egress::scrub::Scrub;

/// Until an upstream begins to answer; language models take minutes.
const HEAD_TIMEOUT: Duration = Duration::from_secs(900);

pub(super) async fn exchange(
    connection: &Connection,
    mut request: Request<Incoming>,
) -> Response<ResponseBody> {
    let version = request.version();
    let guest_upgrade = hyper::upgrade::on(&mut request);
    let (mut parts, body) = request.into_parts();
    let place = Place { host: &connection.flow.host, port: connection.flow.port, tls: connection.tls };

    let checked = match check(&parts, place) {
        Ok(checked) => checked,
        Err(refusal) => return refuse(connection, &parts, false, refusal, Vec::new()).await,
    };
    let websocket = checked.websocket;
    let rule_id = match connection.flow.execution.policy().decide(place.host, place.port) {
        Decision::Permit { rule_id } => rule_id,
        Decision::Refuse(refusal) => {
            return refuse(connection, &parts, websocket, refusal.into(), Vec::new()).await;
        }
    };
    let credentials = match credentials::judge(connection.asker(), &parts).await {
        Ok(credentials) => credentials,
        Err(blocked) => return refuse(connection, &parts, websocket, blocked.refusal, blocked.uses).await,
    };
    let call = call(connection, &parts, websocket, credentials.uses());
    let execution = &connection.flow.execution;
    let pending = match execution.audit().begin(&execution.subject, call).await {
        Ok(pending) => pending,
        Err(error) => return unaudited(connection, &error, version),
    };

    let bytes_out = Arc::new(AtomicU64::new(0));
    let scrubs = credentials.scrubs();
    credentials.inject(&mut parts.headers);
    prepare(connection, &mut parts, checked);
    let request = Request::from_parts(parts, RequestBody::new(body, Arc::clone(&bytes_out)));
    let response = match send(connection, request, version).await {
        Ok(response) => response,
        Err(refusal) => {
            pending.finish(Outcome { rule_id, ..refusal.outcome() });
            return refusal.response(version);
        }
    };
    let outcome = Outcome { rule_id, ..allowed(&response) };
    if let Err(refusal) = check_response(&response, websocket, &scrubs) {
        pending.finish(Outcome { address: outcome.address, rule_id: outcome.rule_id, ..refusal.outcome() });
        return refusal.response(version);
    }
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return switch(connection, response, guest_upgrade, TunnelRow::new(pending, outcome), &scrubs);
    }
    let row = ResponseRow { pending: Some(pending), outcome: Some(outcome), bytes_out, bytes_in: 0 };
    pass_on(response, row, scrubs)
}

impl Connection {
    fn scheme(&self, websocket: bool) -> Scheme {
        match (self.tls, websocket) {
            (true, false) => Scheme::Https,
            (true, true) => Scheme::Wss,
            (false, false) => Scheme::Http,
            (false, true) => Scheme::Ws,
        }
    }

    fn asker(&self) -> credentials::Asker<'_> {
        let Self { flow, tls } = self;
        credentials::Asker {
            execution: &flow.execution,
            host: &flow.host,
            tls: *tls,
            by_address: flow.by_address,
        }
    }
}

/// The request as the guest sent it, for its row.
fn call<'a>(
    connection: &'a Connection,
    parts: &'a Parts,
    websocket: bool,
    secrets: Vec<SecretUse>,
) -> Call<'a> {
    Call {
        method: Some(parts.method.as_str()),
        path: Some(parts.uri.path()),
        secrets,
        ..connection.flow.call(connection.scheme(websocket))
    }
}

async fn refuse(
    connection: &Connection,
    parts: &Parts,
    websocket: bool,
    refusal: Refusal,
    secrets: Vec<SecretUse>,
) -> Response<ResponseBody> {
    let execution = &connection.flow.execution;
    let call = call(connection, parts, websocket, secrets);
    match execution.audit().reject(&execution.subject, call, refusal.outcome()).await {
        Ok(()) => refusal.response(parts.version),
        Err(error) => unaudited(connection, &error, parts.version),
    }
}

/// What cannot be recorded does not happen.
fn unaudited(
    connection: &Connection,
    error: &crate::egress::audit::Error,
    version: Version,
) -> Response<ResponseBody> {
    connection.flow.execution.tell_unaudited(error);
    let message = "this host cannot record outbound calls at the moment; try again later";
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, reason::LIMIT, message).response(version)
}

/// Makes the guest's request one of our own: same method, target and end-to-end headers, our host and hop.
fn prepare(connection: &Connection, parts: &mut Parts, checked: Checked) {
    header::clean_request(&mut parts.headers, &checked.nominated);
    if checked.websocket {
        header::set_websocket(&mut parts.headers);
    }
    let (scheme, default_port) = if connection.tls { ("https", 443) } else { ("http", 80) };
    let host = connection.flow.host.url_text();
    let authority = match connection.flow.port {
        port if port == default_port => host,
        port => format!("{host}:{port}"),
    };
    // A checked host and a port are an authority, and a parsed target stays one.
    let uri = Uri::builder().scheme(scheme).authority(authority).path_and_query(checked.target).build();
    parts.uri = uri.expect("a checked host, a port and a parsed target make a URI");
    // The pool speaks whatever its connection negotiated; this is only what it accepts.
    parts.version = Version::HTTP_11;
    parts.extensions.clear();
}

async fn send(
    connection: &Connection,
    request: Request<RequestBody>,
    version: Version,
) -> Result<Response<Incoming>, Refusal> {
    let speak = match (version, connection.tls) {
        (Version::HTTP_2, true) => Speak::Http2,
        (Version::HTTP_2, false) => Speak::Http2Plain,
        _ => Speak::Http1,
    };
    let client = connection.flow.execution.clients.client(speak);
    match tokio::time::timeout(HEAD_TIMEOUT, client.request(request)).await {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(error)) => Err(explain(connection, &error)),
        Err(_) => {
            let message = format!("{} did not answer in time", connection.flow.host);
            Err(Refusal::failed(StatusCode::GATEWAY_TIMEOUT, reason::TIMEOUT, message))
        }
    }
}

/// Why there is no response, in terms of what went wrong on the way.
fn explain(connection: &Connection, error: &legacy::Error) -> Refusal {
    let host = &connection.flow.host;
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(error) = cause.downcast_ref::<client::Error>() {
            let message = format!("{host} cannot be reached: {}", chain(error));
            return match error.is_refusal() {
                true => Refusal::new(StatusCode::FORBIDDEN, error.reason(), message),
                false => Refusal::failed(StatusCode::BAD_GATEWAY, error.reason(), message),
            };
        }
        source = cause.source();
    }
    let message = format!("{host} gave no valid response: {}", chain(error));
    Refusal::failed(StatusCode::BAD_GATEWAY, reason::UPSTREAM_PROTOCOL, message)
}

fn allowed(response: &Response<Incoming>) -> Outcome {
    let address = response.extensions().get::<client::Address>().map(|address| address.0);
    Outcome { address, ..Outcome::allowed(response.status().as_u16()) }
}

/// What an upstream may answer: no switch that was not asked for, and nothing that hides a credential.
fn check_response(
    response: &Response<Incoming>,
    websocket: bool,
    scrubs: &[Arc<Scrub>],
) -> Result<(), Refusal> {
    let refuse = |reason, message| Err(Refusal::failed(StatusCode::BAD_GATEWAY, reason, message));
    let switches = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    if switches && !(websocket && header::is_websocket(response.headers())) {
        return refuse(reason::UPSTREAM_PROTOCOL, "the upstream switched protocols without being asked");
    }
    let is_searched = !scrubs.is_empty() && !Defence::ReadableResponse.is_off();
    if is_searched && !header::is_readable(response.headers()) {
        let message =
            "the upstream answered a request with a credential in an encoding that cannot be searched";
        return refuse(reason::UNREADABLE_RESPONSE, message);
    }
    Ok(())
}

fn pass_on(
    mut response: Response<Incoming>,
    row: ResponseRow,
    scrubs: Vec<Arc<Scrub>>,
) -> Response<ResponseBody> {
    clean(&mut response, &scrubs);
    *response.version_mut() = Version::HTTP_11;
    // A replacement has another length; where there is no body, the length is only said.
    if !scrubs.is_empty() && !response.body().is_end_stream() {
        response.headers_mut().remove(CONTENT_LENGTH);
    }
    response.map(|body| Either::Right(UpstreamBody::new(body, row, scrubs)))
}

/// Removes what is not for the guest: the hop's headers, credentials, and what hyper knows of the connection.
fn clean(response: &mut Response<Incoming>, scrubs: &[Arc<Scrub>]) {
    header::clean_response(response.headers_mut());
    header::scrub(response.headers_mut(), scrubs);
    response.extensions_mut().clear();
}

/// Passes a granted WebSocket on. Its frames are not searched.
fn switch(
    connection: &Connection,
    mut response: Response<Incoming>,
    guest: OnUpgrade,
    mut row: TunnelRow,
    scrubs: &[Arc<Scrub>],
) -> Response<ResponseBody> {
    row.opened();
    let upstream = hyper::upgrade::on(&mut response);
    connection.flow.execution.spawn(upgrade::relay(upgrade::Granted { guest, upstream, row }));
    clean(&mut response, scrubs);
    header::set_websocket(response.headers_mut());
    response.map(|_| Either::Left(http_body_util::Full::default()))
}
