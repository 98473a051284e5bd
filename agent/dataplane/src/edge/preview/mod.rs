//! Previews: what a sandbox serves on a port, for browsers.
//!
//! `listener` (TLS, HTTP) -> `service` (the story) -> `route` (where to, asked of the scheduler) -> `admit`
//! (`credential`, `verify`) -> `upstream` (the guest) and back through `hygiene` and `stream`; `page` is what we say
//! ourselves. Holds public keys only: it cannot mint a token.

mod admit;
mod certificate;
mod credential;
mod hygiene;
mod listener;
mod owner;
mod page;
mod route;
mod scheduler;
mod service;
mod stream;
mod upstream;
mod verify;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use roost_daemon::shutdown::Shutdown;
use tokio::net::TcpListener;

pub use certificate::PreviewCertificate;
pub use credential::BadBrand;
pub use listener::Door;
pub use route::{RouteTable, Routes, Unavailable};
pub use scheduler::SchedulerRoutes;
pub use verify::Verifier;

use crate::config;
use crate::edge::metrics::PreviewMetrics;
use crate::guest::Guests;
use crate::identity::Identity;
use credential::Names;
use owner::Owners;
use service::PreviewService;
use upstream::Upstream;

// How soon after the end of its lease a private preview's streams end.
const LAPSE_INTERVAL: Duration = Duration::from_millis(500);

/// Everything previews consist of, ready to be served.
#[derive(Debug)]
pub struct Previews {
    pub routes: Arc<RouteTable>,
    pub verifier: Arc<Verifier>,
    /// Where requests come in.
    pub door: Arc<Door>,
    certificate: Arc<PreviewCertificate>,
    upstream: Arc<Upstream>,
}

impl Previews {
    pub fn new(
        directory: &Path,
        settings: &config::Preview,
        source: Arc<dyn Routes>,
        guests: Arc<Guests>,
        identity: Arc<Identity>,
        metrics: PreviewMetrics,
    ) -> Result<Self, BadBrand> {
        let routes = RouteTable::new(source);
        let verifier = Arc::new(Verifier::new(&settings.brand));
        let service = PreviewService {
            names: Names::new(&settings.brand)?,
            isolation: settings.cookie_isolation,
            verifier: verifier.clone(),
            routes: routes.clone(),
            guests,
            metrics,
            owners: Owners::new(identity),
            upstream: Upstream::new(),
        };
        let certificate = PreviewCertificate::new(directory, settings);
        let (upstream, service) = (service.upstream.clone(), Arc::new(service));
        let door = Door::new(certificate.clone(), service);
        Ok(Self { routes, verifier, certificate, upstream, door })
    }

    /// Serves the listeners until the shutdown is requested.
    pub fn serve(self, listeners: Vec<TcpListener>, shutdown: &Shutdown) {
        tokio::spawn(self.certificate.clone().keep_current());
        tokio::spawn(self.upstream.close_unused());
        let routes = self.routes;
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(LAPSE_INTERVAL).await;
                routes.end_lapsed();
            }
        });
        for listener in listeners {
            shutdown.spawn(self.door.clone().serve(listener, shutdown.clone()));
        }
    }
}
