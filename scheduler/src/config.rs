//! The scheduler's settings file. Every key has a default that works on one machine.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use roost_daemon::telemetry;
use serde::Deserialize;

use crate::store;

/// Bounds of `revocation_bound_s`.
const REVOCATION_BOUND_S: std::ops::RangeInclusive<u64> = 10..=600;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    #[error("store.url is needed for PostgreSQL: postgres://user@host/database")]
    NoUrl,
    #[error("store.url is not a PostgreSQL address")]
    Url,
    #[error(
        "the database would be reached over a network in clear: use a unix socket or a tunnel on loopback, or set \
         store.allow_plaintext where the network itself is trusted"
    )]
    PlaintextDatabase,
    #[error("revocation_bound_s must be {} to {}", REVOCATION_BOUND_S.start(), REVOCATION_BOUND_S.end())]
    RevocationBound,
    #[error("api.certificate_file and api.key_file are needed for api.tls = \"files\"")]
    NoCertificate,
    #[error("api.tls = \"development\" needs [development] certificates = true")]
    NoDevelopment,
    #[error(
        "the API would be served in clear to other machines: set api.tls, or listen on loopback behind a proxy"
    )]
    PlaintextApi,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Database, authorities, master key. Readable by the scheduler alone.
    pub state_dir: PathBuf,
    /// Where `roost-scheduler admin` talks to the running scheduler.
    pub admin_socket: PathBuf,
    /// /healthz, /readyz and /metrics on loopback.
    pub health_port: u16,
    /// How long hosts may use credentials and private previews without hearing from us.
    pub revocation_bound_s: u64,
    pub log: telemetry::Settings,
    pub store: Store,
    pub api: Api,
    pub hosts: Hosts,
    pub brand: Brand,
    pub preview: Preview,
    pub audit: Audit,
    pub development: Development,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    Sqlite,
    Postgres,
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Store {
    pub engine: Engine,
    /// For PostgreSQL.
    pub url: Option<String>,
    /// For PostgreSQL: half of them write, half read.
    pub connections: usize,
    /// For PostgreSQL on another machine: the connection has no TLS of its own.
    pub allow_plaintext: bool,
}

/// The URL may hold a password.
impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("engine", &self.engine).finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tls {
    /// In clear: on loopback, or behind a proxy that speaks TLS.
    Off,
    /// The certificate the scheduler made for itself.
    Development,
    Files,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Api {
    pub listen: SocketAddr,
    pub tls: Tls,
    pub certificate_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Hosts {
    /// Where hosts join and report, always with TLS.
    pub listen: SocketAddr,
}

/// What shows on the wire. The defaults are what existing clients expect.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Brand {
    /// Before every API key.
    pub key_prefix: String,
    /// In every browser token, as in `miosa_pv_`.
    pub token_brand: String,
    /// `iss` of browser tokens.
    pub issuer: String,
    /// By which placeholders are recognised; 4 to 12 letters and digits.
    pub placeholder_marker: String,
    /// Before placeholders of names that are not well known.
    pub placeholder_prefix: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Preview {
    /// Previews are `{port}-{slug}.sandbox.{domain}` and `{key}.preview.{domain}`.
    pub domain: String,
    /// In preview URLs, when the edge is not on 443.
    pub port: Option<u16>,
    /// Origins that may frame any preview.
    pub frame_ancestors: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Audit {
    /// Egress audit rows older than this are dropped.
    pub egress_retention_days: u32,
    /// Events older than this are dropped.
    pub event_retention_days: u32,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Development {
    /// Make certificates for previews and the API under a root of our own, and hand the preview one to hosts.
    pub certificates: bool,
    /// Names in the API's certificate.
    pub api_names: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            state_dir: "/var/lib/roost/scheduler".into(),
            admin_socket: "/run/roost/scheduler/admin.sock".into(),
            health_port: 9470,
            revocation_bound_s: 30,
            log: telemetry::Settings::default(),
            store: Store::default(),
            api: Api::default(),
            hosts: Hosts::default(),
            brand: Brand::default(),
            preview: Preview::default(),
            audit: Audit::default(),
            development: Development::default(),
        }
    }
}

impl Default for Store {
    fn default() -> Self {
        Self { engine: Engine::Sqlite, url: None, connections: 16, allow_plaintext: false }
    }
}

impl Default for Api {
    fn default() -> Self {
        let listen = SocketAddr::from(([127, 0, 0, 1], 8480));
        Self { listen, tls: Tls::Off, certificate_file: None, key_file: None }
    }
}

impl Default for Hosts {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([0, 0, 0, 0], 8443)) }
    }
}

impl Default for Brand {
    fn default() -> Self {
        Self {
            key_prefix: "msk_".to_owned(),
            token_brand: "miosa".to_owned(),
            issuer: "roost".to_owned(),
            placeholder_marker: roost_domain::placeholder::DEFAULT_MARKER.to_owned(),
            placeholder_prefix: roost_domain::presets::GENERIC_PREFIX.to_owned(),
        }
    }
}

impl Default for Preview {
    fn default() -> Self {
        Self {
            domain: "roost.localhost".to_owned(),
            port: None,
            frame_ancestors: ["https://*.miosa.app", "https://*.miosa.ai", "http://localhost:4000"]
                .map(str::to_owned)
                .to_vec(),
        }
    }
}

impl Default for Audit {
    fn default() -> Self {
        Self { egress_retention_days: 90, event_retention_days: 30 }
    }
}

impl Store {
    fn check_url(&self) -> Result<(), Error> {
        let url = self.url.as_deref().ok_or(Error::NoUrl)?;
        let parsed: ::postgres::Config = url.parse().map_err(|_| Error::Url)?;
        let is_here = |host: &::postgres::config::Host| match host {
            ::postgres::config::Host::Unix(_) => true,
            ::postgres::config::Host::Tcp(name) => {
                name == "localhost"
                    || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
            }
        };
        if self.allow_plaintext || parsed.get_hosts().iter().all(is_here) {
            Ok(())
        } else {
            Err(Error::PlaintextDatabase)
        }
    }
}

impl Config {
    /// What the types cannot say.
    pub fn check(&self) -> Result<(), Error> {
        if self.store.engine == Engine::Postgres {
            self.store.check_url()?;
        }
        if !REVOCATION_BOUND_S.contains(&self.revocation_bound_s) {
            return Err(Error::RevocationBound);
        }
        match self.api.tls {
            Tls::Off if !self.api.listen.ip().is_loopback() => Err(Error::PlaintextApi),
            Tls::Files if self.api.certificate_file.is_none() || self.api.key_file.is_none() => {
                Err(Error::NoCertificate)
            }
            Tls::Development if !self.development.certificates => Err(Error::NoDevelopment),
            Tls::Off | Tls::Files | Tls::Development => Ok(()),
        }
    }

    pub fn store_settings(&self) -> store::Settings {
        match (&self.store.engine, &self.store.url) {
            (Engine::Postgres, Some(url)) => {
                store::Settings::Postgres { url: url.clone(), connections: self.store.connections }
            }
            _ => store::Settings::Sqlite { path: self.state_dir.join("scheduler.db") },
        }
    }

    pub fn revocation_bound(&self) -> Duration {
        Duration::from_secs(self.revocation_bound_s)
    }

    pub fn pki_dir(&self) -> PathBuf {
        self.state_dir.join("pki")
    }

    pub fn master_key_file(&self) -> PathBuf {
        self.state_dir.join("master.key")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Config {
        roost_daemon::config::parse(text, std::path::Path::new("scheduler.toml")).unwrap()
    }

    #[test]
    fn an_empty_file_is_enough_and_safe() {
        let config = parse("");
        assert_eq!(config.check(), Ok(()));
        assert!(config.api.listen.ip().is_loopback());
        assert_eq!(config.brand.key_prefix, "msk_");
    }

    #[test]
    fn what_would_not_be_safe_or_cannot_work_is_refused() {
        for (text, error) in [
            ("[store]\nengine = \"postgres\"", Error::NoUrl),
            ("[store]\nengine = \"postgres\"\nurl = \"nonsense\"", Error::Url),
            (
                "[store]\nengine = \"postgres\"\nurl = \"postgres://roost@db.example/roost\"",
                Error::PlaintextDatabase,
            ),
            ("revocation_bound_s = 5", Error::RevocationBound),
            ("revocation_bound_s = 601", Error::RevocationBound),
            ("[api]\nlisten = \"0.0.0.0:80\"", Error::PlaintextApi),
            ("[api]\ntls = \"files\"", Error::NoCertificate),
            ("[api]\ntls = \"development\"", Error::NoDevelopment),
        ] {
            assert_eq!(parse(text).check(), Err(error), "{text}");
        }
    }

    #[test]
    fn a_database_nearby_or_on_a_trusted_network_is_fine() {
        for url in [
            "postgres://roost@%2Frun%2Fpostgresql/roost",
            "postgres://roost@127.0.0.1:5432/roost",
            "postgres://roost@localhost/roost",
        ] {
            assert_eq!(
                parse(&format!("[store]\nengine = \"postgres\"\nurl = \"{url}\"")).check(),
                Ok(()),
                "{url}"
            );
        }
        let far = "[store]\nengine = \"postgres\"\nurl = \"postgres://db/roost\"\nallow_plaintext = true";
        assert_eq!(parse(far).check(), Ok(()));
    }

    #[test]
    fn a_password_does_not_show() {
        let config = parse("[store]\nengine = \"postgres\"\nurl = \"postgres://roost:hunter2@db/roost\"");
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
