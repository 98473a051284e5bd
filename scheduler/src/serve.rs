//! The running scheduler: everything opened, wired and started in order, and stopped together.

use std::sync::Arc;

use anyhow::Context as _;
use prometheus_client::registry::Registry;
use roost_daemon::clock::{self, Clock};
use roost_daemon::health::{self, Health};
use roost_daemon::shutdown::{DRAIN_DEADLINE, Drained, Shutdown};
use roost_domain::placeholder::Format;
use tokio_rustls::TlsAcceptor;

use crate::app::{App, Brand, Limits};
use crate::audit::Audit;
use crate::config::{Config, Engine, Tls};
use crate::fleet::{self, Fleet};
use crate::metrics::Metrics;
use crate::pki::{Development, KeyedChain, Pki};
use crate::secret::Vault;
use crate::store::Store;
use crate::{admin, http, listen, sweep};

/// Runs until asked to stop.
pub async fn run(config: Config, shutdown: Shutdown) -> anyhow::Result<()> {
    config.check()?;
    let health = Health::new();
    let serving = health.check("serving");
    let clock: Arc<dyn Clock> = Arc::new(clock::System);
    let opening = config.clone();
    let now_us = clock.now_us();
    let (store, audit, pki) = tokio::task::spawn_blocking(move || open(&opening, now_us)).await??;
    let api_tls = api_tls(&config, &pki)?;
    let app = Arc::new(wire(&config, store.clone(), audit.clone(), pki, clock.clone())?);

    let health_listener = health::bind(&health::Settings::on_port(config.health_port)).await?;
    let admin_listener = admin::bind(&config.admin_socket)?;
    let hosts = fleet::bind(config.hosts.listen).await?;
    let api = listen::bind(config.api.listen).await?;
    let operator =
        admin::Operator { store: store.clone(), clock, key_prefix: config.brand.key_prefix.clone() };
    tracing::info!(api = %api.local_addr()?, hosts = %hosts.address(), "serving");

    let mut registry = Registry::default();
    app.fleet.register(&mut registry);
    shutdown.spawn(Metrics::register(&mut registry).run(store, shutdown.clone()));
    shutdown.spawn(health::serve(health_listener, health.clone(), Arc::new(registry), shutdown.clone()));
    shutdown.spawn(admin::serve(admin_listener, operator, shutdown.clone()));
    shutdown.spawn(sweep::run(
        app.clone(),
        audit,
        config.audit.clone(),
        health.check("store"),
        shutdown.clone(),
    ));
    let (fleet, stopping) = (app.fleet.clone(), shutdown.clone());
    shutdown.spawn(async move {
        if let Err(error) = hosts.serve(fleet, stopping.clone()).await {
            tracing::error!(error = roost_daemon::telemetry::chain(&error), "hosts can no longer be served");
            stopping.request();
        }
    });
    serving.pass();
    listen::serve(api, api_tls, http::router(app), shutdown.clone()).await;
    match shutdown.drain(DRAIN_DEADLINE).await {
        Drained::Complete => {}
        Drained::GivenUp { tasks } => tracing::warn!(tasks, "some work did not end in time"),
    }
    let _ = std::fs::remove_file(&config.admin_socket);
    Ok(())
}

/// What blocks while it opens.
fn open(config: &Config, now_us: i64) -> anyhow::Result<(Store, Audit, Pki)> {
    let development = config.development.certificates.then(|| Development {
        preview_domain: config.preview.domain.clone(),
        api_names: match config.development.api_names.as_slice() {
            [] => vec!["localhost".to_owned()],
            names => names.to_vec(),
        },
    });
    crate::pki::ensure_private_directory(&config.state_dir)?;
    let pki = Pki::ensure(&config.pki_dir(), development.as_ref(), now_us).context("open the authorities")?;
    let store = Store::open(config.store_settings())?;
    let audit = match (&config.store.engine, &config.store.url) {
        (Engine::Postgres, Some(url)) => Audit::in_database(url.clone(), config.store.connections)?,
        _ => Audit::in_directory(config.state_dir.join("audit"))?,
    };
    Ok((store, audit, pki))
}

fn wire(config: &Config, store: Store, audit: Audit, pki: Pki, clock: Arc<dyn Clock>) -> anyhow::Result<App> {
    let brand = &config.brand;
    let format = Format::new(&brand.placeholder_marker, &brand.placeholder_prefix)?;
    let master = Vault::ensure_master_key(&config.master_key_file())?;
    let vault = Vault::new(store.clone(), clock.clone(), master, format);
    let settings = fleet::Settings {
        issuer: brand.issuer.clone(),
        token_prefix: brand.token_brand.clone(),
        frame_ancestors: config.preview.frame_ancestors.clone(),
        revocation_bound: config.revocation_bound(),
    };
    let fleet =
        Fleet::new(store.clone(), clock.clone(), Arc::new(pki), vault.clone(), audit.clone(), settings);
    let brand = Brand {
        key_prefix: brand.key_prefix.clone(),
        issuer: brand.issuer.clone(),
        token_brand: brand.token_brand.clone(),
        preview_domain: config.preview.domain.clone(),
        preview_port: config.preview.port,
    };
    Ok(App { store, clock, fleet, vault, audit, brand, limits: Limits::default() })
}

fn api_tls(config: &Config, pki: &Pki) -> anyhow::Result<Option<TlsAcceptor>> {
    let keyed = match (config.api.tls, &config.api.certificate_file, &config.api.key_file) {
        (Tls::Off, ..) => return Ok(None),
        (Tls::Development, ..) => pki.api().cloned().context("there is no development certificate")?,
        (Tls::Files, Some(certificate), Some(key)) => KeyedChain {
            chain_pem: std::fs::read_to_string(certificate).context("read api.certificate_file")?,
            key_pem: std::fs::read_to_string(key).context("read api.key_file")?,
        },
        (Tls::Files, ..) => anyhow::bail!("api.certificate_file and api.key_file are both needed"),
    };
    Ok(Some(listen::tls(&keyed)?))
}
