//! The mutual-TLS server hosts call. Thin: the gate has let the caller in, the fleet does the work.

use std::net::SocketAddr;
use std::time::Duration;

use roost_daemon::shutdown::Shutdown;
use roost_proto::host as proto;
use roost_proto::host::audit_server::{Audit as AuditService, AuditServer};
use roost_proto::host::fleet_server::{Fleet as FleetService, FleetServer};
use roost_proto::host::lease_server::{Lease as LeaseService, LeaseServer};
use roost_proto::host::route_server::{Route as RouteService, RouteServer};
use tokio::net::TcpListener;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, Identity as TlsIdentity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

use super::gate::{GateLayer, caller};
use super::{Error, Fleet, news};

/// An Upload or a Sync of a full host; a piece of an audit segment.
const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
const KEEP_ALIVE: Duration = Duration::from_secs(20);
const STREAMS_PER_CONNECTION: u32 = 256;

/// A listener that is open but not served yet, so that its port is known first.
#[derive(Debug)]
pub struct Bound {
    listener: TcpListener,
    address: SocketAddr,
}

pub async fn bind(address: SocketAddr) -> Result<Bound, Error> {
    let failed = |source| Error::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok(Bound { listener, address })
}

impl Bound {
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until shutdown is requested; streams that are open end then.
    pub async fn serve(self, fleet: Fleet, shutdown: Shutdown) -> Result<(), Error> {
        let own = fleet.shared.pki.scheduler();
        let tls = ServerTlsConfig::new()
            .identity(TlsIdentity::from_pem(&own.chain_pem, &own.key_pem))
            .client_ca_root(Certificate::from_pem(fleet.shared.pki.fleet_roots_pem()))
            .client_auth_optional(true)
            .timeout(HANDSHAKE_DEADLINE);
        let stop = fleet.shared.stop.clone();
        let looking = tokio::spawn(news::run(fleet.clone(), stop.clone()));
        let services = Services { fleet: fleet.clone() };
        let server = Server::builder()
            .tls_config(tls)
            .map_err(Error::Tls)?
            .http2_keepalive_interval(Some(KEEP_ALIVE))
            .max_concurrent_streams(STREAMS_PER_CONNECTION)
            .layer(GateLayer { store: fleet.shared.store.clone(), calls: fleet.shared.calls.clone() })
            .add_service(FleetServer::new(services.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX))
            .add_service(LeaseServer::new(services.clone()))
            .add_service(AuditServer::new(services.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX))
            .add_service(RouteServer::new(services));
        let incoming = TcpIncoming::from(self.listener).with_nodelay(Some(true));
        let stopping = async move {
            shutdown.requested().await;
            stop.cancel();
        };
        let served = server.serve_with_incoming_shutdown(incoming, stopping).await;
        looking.abort();
        served.map_err(Error::Tls)
    }
}

/// What a host hears when something failed here: that it did. The cause is ours to log.
pub(super) fn internal(error: &(dyn std::error::Error + 'static)) -> Status {
    tracing::error!(error = roost_daemon::telemetry::chain(error), "a host's call failed");
    Status::internal("the scheduler failed: see its log")
}

/// A host may only speak of itself.
pub(super) fn check_host(caller: &str, claimed: &str) -> Result<(), Status> {
    if caller == claimed {
        Ok(())
    } else {
        Err(Status::permission_denied("a host may only report about itself"))
    }
}

#[derive(Debug, Clone)]
struct Services {
    fleet: Fleet,
}

#[tonic::async_trait]
impl FleetService for Services {
    async fn join(&self, request: Request<proto::JoinRequest>) -> Result<Response<proto::JoinReply>, Status> {
        self.fleet.join(request.into_inner()).await.map(Response::new)
    }

    async fn renew(
        &self,
        request: Request<proto::RenewRequest>,
    ) -> Result<Response<proto::RenewReply>, Status> {
        let caller = caller(&request)?;
        self.fleet.renew(&caller.host_id, request.get_ref()).map(Response::new)
    }

    async fn sync(&self, request: Request<proto::SyncRequest>) -> Result<Response<proto::SyncReply>, Status> {
        let caller = caller(&request)?;
        self.fleet.sync(&caller.host_id, request.into_inner()).await.map(Response::new)
    }

    async fn upload(
        &self,
        request: Request<proto::UploadRequest>,
    ) -> Result<Response<proto::UploadReply>, Status> {
        let caller = caller(&request)?;
        self.fleet.upload(&caller.host_id, request.into_inner()).await.map(Response::new)
    }
}

#[tonic::async_trait]
impl LeaseService for Services {
    type WatchStream = ReceiverStream<Result<proto::LeaseChange, Status>>;

    async fn resolve(
        &self,
        request: Request<proto::ResolveRequest>,
    ) -> Result<Response<proto::ResolveReply>, Status> {
        let caller = caller(&request)?;
        self.fleet.resolve(&caller.host_id, request.into_inner()).await.map(Response::new)
    }

    async fn watch(
        &self,
        request: Request<proto::WatchLeasesRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let caller = caller(&request)?;
        Ok(Response::new(ReceiverStream::new(self.fleet.watch_leases(caller.host_id))))
    }
}

#[tonic::async_trait]
impl AuditService for Services {
    async fn ship(&self, request: Request<proto::ShipRequest>) -> Result<Response<proto::ShipReply>, Status> {
        let caller = caller(&request)?;
        self.fleet.ship(&caller.host_id, request.into_inner()).await.map(Response::new)
    }
}

#[tonic::async_trait]
impl RouteService for Services {
    type WatchStream = ReceiverStream<Result<proto::RouteChange, Status>>;

    async fn lookup(
        &self,
        request: Request<proto::LookupRequest>,
    ) -> Result<Response<proto::LookupReply>, Status> {
        caller(&request)?;
        self.fleet.lookup(&request.get_ref().host, request.get_ref().resume).await.map(Response::new)
    }

    async fn watch(
        &self,
        request: Request<proto::WatchRoutesRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        caller(&request)?;
        Ok(Response::new(ReceiverStream::new(self.fleet.watch_routes(request.into_inner().hosts)?)))
    }
}
