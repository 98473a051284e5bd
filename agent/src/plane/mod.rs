//! The agent's two connections to the data plane.
//!
//! Owns one session with `egress` and one with `edge`: connect, say hello, learn what the process holds, ask, count
//! bytes. Hands over descriptors it is given; makes none, parses nothing a guest wrote.

mod session;
mod traffic;

use std::path::PathBuf;

use roost_proto::dataplane::FromDataplane;
use tokio::sync::{mpsc, watch};

pub use session::{ANSWER_DEADLINE, Error, Session};
pub use traffic::Traffic;

/// Where the two processes listen and as whom they run.
#[derive(Debug, Clone)]
pub struct Settings {
    pub egress_socket: PathBuf,
    pub egress_uid: u32,
    pub edge_socket: PathBuf,
    pub edge_uid: u32,
}

/// Both sessions.
#[derive(Debug, Clone)]
pub struct Plane {
    pub egress: Session,
    pub edge: Session,
    pub traffic: Traffic,
    changes: watch::Receiver<u64>,
}

/// What a data-plane process asks of the agent by itself.
#[derive(Debug)]
pub struct Request {
    pub role: Role,
    pub message: FromDataplane,
}

/// Which of the two processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    Egress,
    Edge,
}

impl Role {
    pub fn text(self) -> &'static str {
        match self {
            Self::Egress => "egress",
            Self::Edge => "edge",
        }
    }
}

impl Plane {
    /// Starts both sessions; they reconnect by themselves for as long as the returned value lives. `traffic` knows
    /// every open execution already, since what is reported of others is not counted.
    pub fn start(settings: &Settings, host_id: &str, traffic: Traffic) -> (Self, mpsc::Receiver<Request>) {
        let (requests, received) = mpsc::channel(256);
        let (changed, changes) = watch::channel(0);
        let start = |role, path: &PathBuf, uid| {
            Session::start(session::Settings {
                role,
                path: path.clone(),
                uid,
                host_id: host_id.to_owned(),
                requests: requests.clone(),
                changed: changed.clone(),
                traffic: traffic.clone(),
            })
        };
        let egress = start(Role::Egress, &settings.egress_socket, settings.egress_uid);
        let edge = start(Role::Edge, &settings.edge_socket, settings.edge_uid);
        (Self { egress, edge, traffic, changes }, received)
    }

    /// Changes whenever a process comes or goes: whoever waits for one should look again.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }
}
