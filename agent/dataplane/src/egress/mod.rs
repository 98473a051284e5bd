//! Bytes from guests: every TCP connection and every DNS query of an attached execution ends here.
//!
//! ```text
//! guest ─▶ listener ─▶ classify ─▶ tls ─▶ http::exchange ─▶ policy ─▶ credentials ─▶ audit ─▶ upstream
//!      └─▶ dns          └─▶ relay (opaque TCP, bypassed TLS)
//! ```
//! This module owns what all executions share and the list of those attached. It holds plaintext credentials
//! in memory and nowhere else, writes only into its own directory, and dials only through `upstream`, after
//! policy.

pub mod audit;
pub mod classify;
pub mod credentials;
pub mod dns;
mod execution;
mod handler;
mod http;
mod limits;
mod listener;
pub mod policy;
mod relay;
mod run;
mod scheduler;
mod scrub;
mod settings;
mod stream;
mod tls;
mod upstream;

use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use roost_domain::host_name::Pattern;
use roost_domain::placeholder::Format;

pub use handler::Egress;
pub use roost_domain::host_name::Host;
pub use run::{Error as RunError, run};
pub use settings::Settings;
pub use tls::UpstreamRoots;

pub use tls::{AuthorityError, UpstreamError};

use audit::Audit;
use credentials::Leases;
use policy::Policy;
pub use upstream::{Connect, MakeConnector, system_connector};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("audit trail")]
    Audit(#[from] audit::Error),
    #[error("certificate authority for guests")]
    Authority(#[from] AuthorityError),
    #[error("trust in upstreams")]
    UpstreamTls(#[from] UpstreamError),
    #[error("format of placeholders")]
    Placeholders(#[from] roost_domain::placeholder::Error),
}

/// What all executions share.
#[derive(Debug)]
pub(crate) struct Services {
    pub(crate) audit: Audit,
    pub(crate) policy: ArcSwap<Policy>,
    connector: ArcSwap<Arc<dyn Connect>>,
    make_connector: MakeConnector,
    /// Hosts whose TLS is passed through.
    pub(crate) bypass: Vec<Pattern>,
    pub(crate) authority: tls::Authority,
    pub(crate) leaves: tls::Leaves,
    pub(crate) upstream_tls: tls::UpstreamTls,
    pub(crate) placeholders: Format,
    pub(crate) leases: Arc<dyn Leases>,
}

impl Services {
    fn open(
        settings: &Settings,
        directory: &Path,
        leases: Arc<dyn Leases>,
        make_connector: MakeConnector,
    ) -> Result<Self, Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let services = Self {
            audit: Audit::open(&directory.join("audit"))?,
            policy: ArcSwap::default(),
            connector: ArcSwap::from_pointee(make_connector(roost_dial::Settings::default())),
            make_connector,
            bypass: settings.bypass.clone(),
            authority: tls::Authority::open(directory)?,
            leaves: tls::Leaves::new(Arc::clone(&provider)),
            upstream_tls: tls::UpstreamTls::load(&provider, &settings.upstream_roots)?,
            placeholders: settings.placeholders.format()?,
            leases,
        };
        services.set_floor(settings, Vec::new());
        Ok(services)
    }

    /// Takes up exceptions from the deny floor: the operator's own settings and what the agent hands on.
    fn set_floor(&self, settings: &Settings, more: Vec<roost_domain::address::Exception>) {
        let floor = settings.floor(more);
        self.policy.store(Arc::new(Policy { floor: floor.clone(), ..settings.policy.clone() }));
        let hosts = settings.fixed_hosts();
        let dial = roost_dial::Settings { floor, hosts, ..roost_dial::Settings::default() };
        self.connector.store(Arc::new((self.make_connector)(dial)));
    }

    pub(crate) fn connector(&self) -> Arc<dyn Connect> {
        Arc::clone(&self.connector.load())
    }
}
