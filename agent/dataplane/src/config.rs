//! The settings file of a data-plane process. Unknown keys are refused; every default is here.
//!
//! One file per role; a section the role does not know is an error, so that a setting never silently does nothing.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use roost_daemon::{health, telemetry};
use serde::Deserialize;

use crate::confine::Identity;
use crate::control::Role;

/// uid and gid of the roles unless the settings say otherwise.
const EGRESS_UID: u32 = 60600;
const EDGE_UID: u32 = 60601;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("settings of {role}")]
    File { role: Role, source: roost_daemon::config::Error },
    #[error("[{section}] is no section of {role}")]
    Section { role: Role, section: &'static str },
    #[error("[preview] needs [scheduler], which knows the routes")]
    NoScheduler,
    #[error("{key} must be an absolute path")]
    Relative { key: &'static str },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    pub process: Process,
    #[serde(default)]
    pub log: telemetry::Settings,
    /// Where /healthz, /readyz and /metrics are served; nowhere without it.
    pub health: Option<health::Settings>,
    /// Edge: the guest gateway for the scheduler.
    pub gateway: Option<Gateway>,
    /// Edge: previews for browsers.
    pub preview: Option<Preview>,
    /// Egress: what the operator says about all guests.
    pub egress: Option<crate::egress::Settings>,
    /// Where the process's own questions go; without it the host serves its operator only.
    pub scheduler: Option<Scheduler>,
}

/// What both roles have.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Process {
    /// The process's own directory, mode 0700: keys and certificates, journals.
    pub directory: PathBuf,
    /// Where the agent connects; its directory is the process's own too.
    pub control_socket: PathBuf,
    /// The only uid that may connect to the control socket.
    #[serde(default)]
    pub agent_uid: u32,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

/// The guest gateway on the network, mutual TLS with the process's own certificate.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gateway {
    pub listen: SocketAddr,
}

/// Previews over HTTPS.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preview {
    /// Usually `0.0.0.0:443` and `[::]:443`.
    pub listen: Vec<SocketAddr>,
    /// Chain and key for the preview domains, readable by the process; loaded again when they change. Without them
    /// the development certificate in the process's directory serves.
    pub certificate_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    /// In token prefixes, the token header and the cookie's name.
    #[serde(default = "default_brand")]
    pub brand: String,
    /// Whether cookies of the parent domain are kept from previews.
    #[serde(default)]
    pub cookie_isolation: CookieIsolation,
}

/// Which cookies of a browser a preview gets to see.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CookieIsolation {
    /// All but ours.
    #[default]
    Off,
    /// Only those the preview itself set on its own host (`__Host-…`).
    Strict,
}

fn default_brand() -> String {
    "miosa".to_owned()
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scheduler {
    /// `host:port` of its fleet address.
    pub address: String,
}

impl Settings {
    /// Whom the process becomes.
    pub fn identity(&self, role: Role) -> Identity {
        let uid = self.process.uid.unwrap_or(match role {
            Role::Egress => EGRESS_UID,
            Role::Edge => EDGE_UID,
        });
        Identity { uid, gid: self.process.gid.unwrap_or(uid) }
    }
}

/// Reads and checks the settings of a role.
pub fn load(path: &Path, role: Role) -> Result<Settings, Error> {
    let settings: Settings =
        roost_daemon::config::load(path).map_err(|source| Error::File { role, source })?;
    check(&settings, role)?;
    Ok(settings)
}

fn check(settings: &Settings, role: Role) -> Result<(), Error> {
    for (key, path) in [
        ("process.directory", &settings.process.directory),
        ("process.control_socket", &settings.process.control_socket),
    ] {
        if !path.is_absolute() {
            return Err(Error::Relative { key });
        }
    }
    if settings.preview.is_some() && settings.scheduler.is_none() {
        return Err(Error::NoScheduler);
    }
    let edge_sections = [("gateway", settings.gateway.is_some()), ("preview", settings.preview.is_some())];
    for (section, is_there) in edge_sections {
        if role == Role::Egress && is_there {
            return Err(Error::Section { role, section });
        }
    }
    if role == Role::Edge && settings.egress.is_some() {
        return Err(Error::Section { role, section: "egress" });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROCESS: &str =
        "[process]\ndirectory = \"/var/lib/roost/x\"\ncontrol_socket = \"/run/roost/x/c.sock\"\n";

    fn load_text(text: &str, role: Role) -> Result<Settings, String> {
        let settings: Settings =
            roost_daemon::config::parse(text, Path::new("x.toml")).map_err(|e| e.to_string())?;
        check(&settings, role).map_err(|e| e.to_string())?;
        Ok(settings)
    }

    #[test]
    fn each_role_has_its_own_uid() {
        let settings = load_text(PROCESS, Role::Edge).unwrap();
        assert_eq!(settings.identity(Role::Edge), Identity { uid: 60601, gid: 60601 });
        assert_eq!(settings.identity(Role::Egress), Identity { uid: 60600, gid: 60600 });
        let settings = load_text(&format!("{PROCESS}uid = 7\n"), Role::Edge).unwrap();
        assert_eq!(settings.identity(Role::Edge), Identity { uid: 7, gid: 7 });
    }

    #[test]
    fn a_section_of_the_other_role_and_an_unknown_key_are_refused() {
        let text = format!("{PROCESS}[gateway]\nlisten = \"127.0.0.1:7443\"\n");
        assert!(load_text(&text, Role::Edge).is_ok());
        assert_eq!(load_text(&text, Role::Egress).unwrap_err(), "[gateway] is no section of egress");
        let error = load_text(&format!("{PROCESS}uidd = 7\n"), Role::Edge).unwrap_err();
        assert!(error.contains("unknown field"), "{error}");
        let error = load_text(&PROCESS.replace("/run", "run"), Role::Edge).unwrap_err();
        assert_eq!(error, "process.control_socket must be an absolute path");
    }
}
