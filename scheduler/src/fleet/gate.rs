//! Who may call which RPC: one table, and everything that is not in it is refused.
//!
//! Runs before any service sees a request, so a handler cannot forget to ask. Handlers find who called in the
//! request's extensions as a [`Caller`].

use std::task::{Context, Poll};

use futures::future::BoxFuture;
use http::{Request, Response};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use roost_domain::sabotage::Defence;
use tonic::Status;
use tonic::body::Body;
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo};
use tower::Service;

use crate::pki::{Identity, Role};
use crate::store::{Store, host};

/// Who an RPC is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allowed {
    /// Anybody who reached the listener: the RPC checks a one-time token itself.
    Anybody,
    Host(Role),
}

/// Every RPC the scheduler serves to hosts, with its only callers.
pub const CALLERS: &[(&str, Allowed)] = &[
    ("/roost.host.v1.Fleet/Join", Allowed::Anybody),
    ("/roost.host.v1.Fleet/Renew", Allowed::Host(Role::Agent)),
    ("/roost.host.v1.Fleet/Sync", Allowed::Host(Role::Agent)),
    ("/roost.host.v1.Fleet/Upload", Allowed::Host(Role::Agent)),
    ("/roost.host.v1.Lease/Resolve", Allowed::Host(Role::Egress)),
    ("/roost.host.v1.Lease/Watch", Allowed::Host(Role::Egress)),
    ("/roost.host.v1.Audit/Ship", Allowed::Host(Role::Egress)),
    ("/roost.host.v1.Route/Lookup", Allowed::Host(Role::Edge)),
    ("/roost.host.v1.Route/Watch", Allowed::Host(Role::Edge)),
];

/// The host a request came from, as its certificate says. Absent for [`Allowed::Anybody`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    pub host_id: String,
    pub role: Role,
}

/// The caller the gate let in.
pub(super) fn caller<T>(request: &tonic::Request<T>) -> Result<Caller, Status> {
    request.extensions().get::<Caller>().cloned().ok_or_else(|| Status::internal("a call passed no gate"))
}

/// Calls by RPC and by what the gate made of them.
pub(super) type Calls = Family<Vec<(&'static str, &'static str)>, Counter>;

/// Wraps every service of the fleet's server.
#[derive(Debug, Clone)]
pub(super) struct GateLayer {
    pub(super) store: Store,
    pub(super) calls: Calls,
}

impl<S> tower::Layer<S> for GateLayer {
    type Service = Gate<S>;

    fn layer(&self, inner: S) -> Gate<S> {
        Gate { inner, store: self.store.clone(), calls: self.calls.clone() }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Gate<S> {
    inner: S,
    store: Store,
    calls: Calls,
}

impl<S> Service<Request<Body>> for Gate<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let waiting = self.inner.clone();
        let mut ready = std::mem::replace(&mut self.inner, waiting);
        let (store, calls) = (self.store.clone(), self.calls.clone());
        Box::pin(async move {
            let identity = identity(&request);
            let admitted = admit(&store, request.uri().path(), identity).await;
            count(&calls, request.uri().path(), admitted.is_ok());
            match admitted {
                Ok(caller) => {
                    if let Some(caller) = caller {
                        request.extensions_mut().insert(caller);
                    }
                    ready.call(request).await
                }
                Err(status) => Ok(status.into_http()),
            }
        })
    }
}

/// Only RPCs of the table have a counter of their own: what strangers ask for must not make labels.
fn count(calls: &Calls, path: &str, is_admitted: bool) {
    let rpc = CALLERS.iter().find(|(known, _)| *known == path).map_or("other", |(known, _)| *known);
    let outcome = if is_admitted { "admitted" } else { "refused" };
    calls.get_or_create(&vec![("rpc", rpc), ("outcome", outcome)]).inc();
}

/// What the client's certificate says, which TLS has verified against the fleet root.
fn identity(request: &Request<Body>) -> Option<Result<Identity, crate::pki::Error>> {
    let connection = request.extensions().get::<TlsConnectInfo<TcpConnectInfo>>()?;
    let chain = connection.peer_certs()?;
    chain.first().map(|leaf| Identity::from_certificate(leaf))
}

async fn admit(
    store: &Store,
    path: &str,
    identity: Option<Result<Identity, crate::pki::Error>>,
) -> Result<Option<Caller>, Status> {
    let allowed = CALLERS.iter().find(|(known, _)| *known == path).map(|(_, allowed)| *allowed);
    let wanted = match allowed {
        None => return Err(Status::permission_denied("no identity may call this")),
        Some(Allowed::Anybody) => return Ok(None),
        Some(Allowed::Host(role)) => role,
    };
    let identity = match identity {
        None => return Err(Status::unauthenticated("a certificate of the fleet is needed")),
        Some(Err(error)) => return Err(Status::unauthenticated(error.to_string())),
        Some(Ok(identity)) => identity,
    };
    let Identity::Host { host_id, role } = identity else {
        return Err(Status::permission_denied("the scheduler may not call this"));
    };
    if role != wanted && !Defence::RpcGate.is_off() {
        return Err(Status::permission_denied(format!("{} may not call this", role.word())));
    }
    let id = host_id.clone();
    let host =
        store.read(move |tx| host::find(tx, &id)).await.map_err(|error| super::server::internal(&error))?;
    match host {
        Some(host) if host.state != "removed" => Ok(Some(Caller { host_id, role })),
        _ => Err(Status::permission_denied("this host is not part of the fleet")),
    }
}
