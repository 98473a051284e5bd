//! One request of a browser, from its host name to the guest's answer: the story in order.
//!
//! host -> route -> admit -> clean address and cookie, or forward. Every refusal is a page of ours and says nothing
//! that the visitor may not know: whether a preview exists is told before who may see it, its state after.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{
    CACHE_CONTROL, CONNECTION, HOST, HeaderValue, LOCATION, ORIGIN, REFERRER_POLICY, SET_COOKIE, UPGRADE,
};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use roost_daemon::clock;
use roost_domain::host_name::Host;
use roost_domain::limits::is_publishable_port;
use roost_domain::preview_host::PreviewHost;
use roost_domain::token::Scope;

use super::admit::{self, Admission};
use super::credential::{Names, Source};
use super::hygiene::{self, Client};
use super::owner::Owners;
use super::page::{self, Branding, Problem};
use super::route::{Route, RouteTable};
use super::stream::{Ending, PreviewBody, guarded, tunnel, whole};
use super::upstream::{Answer, Upstream};
use super::verify::Verifier;
use crate::config::CookieIsolation;
use crate::edge::metrics::PreviewMetrics;
use crate::guest::{Guest, Guests};

const HTTPS_PORT: u16 = 443;
// How long a request waits for a sandbox that is starting.
const START_TIMEOUT: Duration = Duration::from_secs(10);
// How soon after it was asked to a sandbox shows that it is waking.
const WAKE_TIMEOUT: Duration = Duration::from_secs(2);
const START_LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// Serves previews.
#[derive(Debug)]
pub(super) struct PreviewService {
    pub names: Names,
    pub isolation: CookieIsolation,
    pub verifier: Arc<Verifier>,
    pub routes: Arc<RouteTable>,
    pub guests: Arc<Guests>,
    pub upstream: Arc<Upstream>,
    pub metrics: PreviewMetrics,
    pub owners: Owners,
}

/// A refusal and whose page it is.
struct Refused {
    problem: Problem,
    branding: Branding,
}

impl From<Problem> for Refused {
    fn from(problem: Problem) -> Self {
        Self { problem, branding: Branding::default() }
    }
}

/// On whose behalf a request is made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Visitor {
    pub(super) address: IpAddr,
    /// Whether it came in at another host: then it goes no further than this one.
    pub(super) is_relayed: bool,
}

impl Visitor {
    /// A browser's own connection.
    pub(super) fn browser(address: IpAddr) -> Self {
        Self { address, is_relayed: false }
    }

    /// The browser that an edge names as its client.
    pub(super) fn relayed(headers: &HeaderMap, edge: IpAddr) -> Self {
        let named = headers.get(hygiene::RELAYED_CLIENT).and_then(|value| value.to_str().ok());
        let address = named.and_then(|text| text.parse().ok()).unwrap_or(edge);
        Self { address, is_relayed: true }
    }
}

/// What is asked for, under which name.
struct Asked {
    host: Host,
    /// As in the address bar.
    authority: String,
    is_websocket: bool,
}

impl PreviewService {
    /// Answers one request of a browser, or of an edge on behalf of one.
    pub(super) async fn serve(&self, request: Request<Incoming>, visitor: Visitor) -> Response<PreviewBody> {
        let is_page = page::wants_page(request.headers());
        match self.answer(request, visitor, is_page).await {
            Ok(response) => {
                self.metrics.count_answer(response.status());
                response
            }
            Err(Refused { problem, branding }) => {
                let response = page::answer(problem, &branding, is_page, &nonce()).map(whole);
                self.metrics.count_refusal(response.status(), problem.code());
                response
            }
        }
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
        visitor: Visitor,
        is_page: bool,
    ) -> Result<Response<PreviewBody>, Refused> {
        let asked = Asked::of(&request)?;
        let route = self.find_route(&asked.host).await?;
        let branded = |problem| Refused { problem, branding: route.branding.clone() };
        let admission = self.admit(&route, &request, &asked).map_err(branded)?;
        if let Some(admission) = admission.as_ref().filter(|admission| {
            let is_navigation = is_page && request.method() == Method::GET && !asked.is_websocket;
            admission.source == Source::Query && is_navigation
        }) {
            return self.redirect(&asked, request.uri(), admission).map_err(branded);
        }
        let ending = Ending {
            revoked: route.ended.clone(),
            expires_in: admission.map(|admission| remaining(admission.expires_s)),
        };
        if !visitor.is_relayed && self.owners.is_elsewhere(&route) {
            return self.relay(request, &asked, &route, visitor, ending).await.map_err(branded);
        }
        let guest = self.find_guest(&asked.host, &route).await.map_err(branded)?;
        self.forward(request, &asked, &route, &guest, visitor, ending).await.map_err(branded)
    }

    async fn find_route(&self, host: &Host) -> Result<Arc<Route>, Problem> {
        if PreviewHost::find(host).is_none() {
            return Err(Problem::NotFound);
        }
        let found = self.routes.find(host.as_str()).await.map_err(|_| Problem::SchedulerUnavailable)?;
        found.filter(|route| is_publishable_port(route.port)).ok_or(Problem::NotFound)
    }

    /// `None` for a public preview, which nobody is asked for.
    fn admit(
        &self,
        route: &Route,
        request: &Request<Incoming>,
        asked: &Asked,
    ) -> Result<Option<Admission>, Problem> {
        if route.is_public {
            return Ok(None);
        }
        let presented = self.names.find(request.uri(), request.headers()).map_err(|_| Problem::BadRequest)?;
        let is_looking = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
        let scope =
            if is_looking && !asked.is_websocket { Scope::PreviewRead } else { Scope::PreviewInteract };
        let now_us = clock::now_us();
        let admission = admit::decide(route, presented, scope, &self.verifier, &self.names.brand, now_us)?;
        // A browser sends the cookie with sockets of any page; only the preview's own pages may open one with it.
        if asked.is_websocket && admission.source == Source::Cookie {
            let origin = request.headers().get(ORIGIN).map(HeaderValue::as_bytes);
            let own = format!("https://{}", asked.authority);
            if origin.is_some_and(|origin| !origin.eq_ignore_ascii_case(own.as_bytes())) {
                return Err(Problem::OriginRefused);
            }
        }
        Ok(Some(admission))
    }

    /// To the same address without the token, which moves into a cookie.
    fn redirect(
        &self,
        asked: &Asked,
        uri: &Uri,
        admission: &Admission,
    ) -> Result<Response<PreviewBody>, Problem> {
        let value = |text: String| HeaderValue::from_str(&text).map_err(|_| Problem::BadRequest);
        let lifetime_s = remaining(admission.expires_s).as_secs();
        let mut response = Response::new(whole(Bytes::new()));
        *response.status_mut() = StatusCode::SEE_OTHER;
        let headers = response.headers_mut();
        // Absolute, so that a path of two slashes cannot lead to another host.
        headers
            .insert(LOCATION, value(format!("https://{}{}", asked.authority, self.names.clean_path(uri)))?);
        let mut cookie = value(format!(
            "{}={}; Path=/; Max-Age={lifetime_s}; Secure; HttpOnly; SameSite=None; Partitioned",
            self.names.cookie, admission.token
        ))?;
        cookie.set_sensitive(true);
        headers.insert(SET_COOKIE, cookie);
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        Ok(response)
    }

    /// The guest behind the route. Who was admitted wakes a sandbox that may wake, and waits for it, bounded.
    async fn find_guest(&self, host: &Host, admitted: &Arc<Route>) -> Result<Arc<Guest>, Problem> {
        let unavailable = |_| Problem::SchedulerUnavailable;
        let attached = |route: &Route| route.execution.and_then(|execution| self.guests.find(execution));
        let deadline = Instant::now() + START_TIMEOUT;
        let mut route = admitted.clone();
        let mut wakes_by = None;
        loop {
            if admitted.ended.is_cancelled() {
                return Err(Problem::TokenRevoked);
            }
            if let Some(guest) = attached(&route) {
                return Ok(guest);
            }
            match wakes_by {
                _ if route.is_starting() && Instant::now() >= deadline => return Err(Problem::Starting),
                _ if route.is_starting() => {}
                None => {
                    wakes_by = Some(deadline.min(Instant::now() + WAKE_TIMEOUT));
                    let answer = self.routes.resume(host.as_str()).await;
                    route = answer.map_err(unavailable)?.ok_or(Problem::NotFound)?;
                    continue;
                }
                Some(by) if Instant::now() >= by => return Err(Problem::NotRunning),
                Some(_) => {}
            }
            // Changes are pushed into the table: this looks there.
            tokio::time::sleep(START_LOOK_INTERVAL).await;
            route = self.routes.find(host.as_str()).await.map_err(unavailable)?.ok_or(Problem::NotFound)?;
        }
    }

    /// To the server in the guest.
    async fn forward(
        &self,
        mut request: Request<Incoming>,
        asked: &Asked,
        route: &Route,
        guest: &Guest,
        visitor: Visitor,
        ending: Ending,
    ) -> Result<Response<PreviewBody>, Problem> {
        let browser = asked.is_websocket.then(|| hyper::upgrade::on(&mut request));
        let path = self.names.clean_path(request.uri());
        *request.uri_mut() = path.parse().map_err(|_| Problem::BadRequest)?;
        *request.version_mut() = Version::HTTP_11;
        let headers = request.headers_mut();
        let client = Client { address: visitor.address, authority: &asked.authority };
        hygiene::prepare_request(headers, client).map_err(|_| Problem::BadRequest)?;
        self.names.strip(headers, self.isolation);
        if browser.is_some() {
            ask_for_websocket(headers);
        }
        let execution = guest.attachment.load().execution;
        let answer = self.upstream.send(guest, (execution, route.port), request).await?;
        let (ancestors, cookie) = (&route.branding.frame_ancestors, &self.names.cookie);
        hand_over(answer, browser, ending, |headers| hygiene::prepare_response(headers, ancestors, cookie))
    }

    /// To the edge of the host that the sandbox is on, which does everything else.
    async fn relay(
        &self,
        mut request: Request<Incoming>,
        asked: &Asked,
        route: &Route,
        visitor: Visitor,
        ending: Ending,
    ) -> Result<Response<PreviewBody>, Problem> {
        let browser = asked.is_websocket.then(|| hyper::upgrade::on(&mut request));
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        *request.uri_mut() = path.parse().map_err(|_| Problem::BadRequest)?;
        *request.version_mut() = Version::HTTP_11;
        let headers = request.headers_mut();
        hygiene::prepare_relay(headers, visitor.address).map_err(|_| Problem::BadRequest)?;
        headers.insert(HOST, HeaderValue::from_str(&asked.authority).map_err(|_| Problem::BadRequest)?);
        if browser.is_some() {
            ask_for_websocket(headers);
        }
        let answer = self.owners.send(route, request).await?;
        hand_over(answer, browser, ending, hygiene::prepare_relayed)
    }
}

/// Turns the other side's answer into ours: a body that can be cut off, or a tunnel if that was asked for.
fn hand_over(
    answer: Answer,
    browser: Option<OnUpgrade>,
    ending: Ending,
    prepare: impl FnOnce(&mut HeaderMap),
) -> Result<Response<PreviewBody>, Problem> {
    let (mut response, place) = (answer.response, answer.place);
    *response.version_mut() = Version::HTTP_11;
    let is_switching = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    let is_websocket = is_switching && is_websocket(response.headers());
    prepare(response.headers_mut());
    match (browser, is_switching) {
        (Some(browser), true) if is_websocket => {
            let other = hyper::upgrade::on(&mut response);
            ask_for_websocket(response.headers_mut());
            tunnel(browser, other, ending, place);
            Ok(response.map(|_| whole(Bytes::new())))
        }
        // Nobody asked for another protocol.
        (_, true) => Err(Problem::AppBroke),
        (_, false) => Ok(response.map(|body| guarded(body, ending, place))),
    }
}

impl Asked {
    fn of<B>(request: &Request<B>) -> Result<Self, Problem> {
        let mut named = request.headers().get_all(HOST).iter();
        let named = match (named.next(), named.next()) {
            (_, Some(_)) => return Err(Problem::BadRequest),
            (named, None) => {
                named.map(|value| value.to_str().map_err(|_| Problem::BadRequest)).transpose()?
            }
        };
        let in_uri = request.uri().authority().map(|authority| authority.as_str());
        if named.zip(in_uri).is_some_and(|(one, other)| one != other) {
            return Err(Problem::BadRequest);
        }
        let text = in_uri.or(named).ok_or(Problem::BadRequest)?;
        let (host, port) = Host::parse_authority(text).map_err(|_| Problem::NotFound)?;
        if matches!(*request.method(), Method::CONNECT | Method::TRACE) {
            return Err(Problem::MethodNotAllowed);
        }
        let authority = match port.filter(|port| *port != HTTPS_PORT) {
            Some(port) => format!("{}:{port}", host.url_text()),
            None => host.url_text(),
        };
        let is_old = request.version() == Version::HTTP_11 && request.method() == Method::GET;
        Ok(Self { host, authority, is_websocket: is_old && is_websocket(request.headers()) })
    }
}

/// Whether a head switches to WebSocket, and to nothing else.
fn is_websocket(headers: &HeaderMap) -> bool {
    let has = |name, token: &str| {
        let values = headers.get_all(name).iter().filter_map(|value: &HeaderValue| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|part| part.trim().eq_ignore_ascii_case(token))
    };
    let is_only =
        headers.get(UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"));
    has(CONNECTION, "upgrade") && is_only
}

fn ask_for_websocket(headers: &mut HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
}

fn remaining(expires_s: i64) -> Duration {
    let left_us = expires_s.saturating_mul(1_000_000).saturating_sub(clock::now_us());
    Duration::from_micros(u64::try_from(left_us).unwrap_or(0))
}

/// Unguessable, for a page's own style and script. Without randomness the page does without both.
fn nonce() -> String {
    let mut bytes = [0; 16];
    match getrandom::fill(&mut bytes) {
        Ok(()) => hex::encode(bytes),
        Err(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(uri: &str, hosts: &[&str]) -> Result<String, Problem> {
        let mut request = Request::builder().uri(uri);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        Asked::of(&request.body(()).unwrap()).map(|asked| asked.authority)
    }

    #[test]
    fn g12_a_request_names_exactly_one_host() {
        assert_eq!(asked("/", &["3000-X.sandbox.a.b:443"]), Ok("3000-x.sandbox.a.b".into()));
        assert_eq!(asked("/", &["3000-x.sandbox.a.b:8443"]), Ok("3000-x.sandbox.a.b:8443".into()));
        assert_eq!(asked("https://3000-x.sandbox.a.b/", &[]), Ok("3000-x.sandbox.a.b".into()));
        assert_eq!(asked("/", &["a.b", "a.b"]), Err(Problem::BadRequest));
        assert_eq!(asked("https://a.b/", &["c.d"]), Err(Problem::BadRequest));
        assert_eq!(asked("/", &[]), Err(Problem::BadRequest));
        for host in ["user@a.b", "a b", "a.b:99999", "a..b", "127.1"] {
            assert_eq!(asked("/", &[host]), Err(Problem::NotFound), "{host}");
        }
    }

    #[test]
    fn only_websocket_is_switched_to() {
        let head = |connection: &str, upgrade: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONNECTION, connection.parse().unwrap());
            headers.insert(UPGRADE, upgrade.parse().unwrap());
            is_websocket(&headers)
        };
        assert!(head("keep-alive, Upgrade", "WebSocket"));
        assert!(!head("keep-alive", "websocket"));
        assert!(!head("upgrade", "h2c"));
        assert!(!head("upgrade", "websocket, h2c"));
    }
}
