//! Who this process is in the fleet: a key of its own, the certificate the agent brought, and the fleet's roots.
//!
//! The key is made here and never leaves the process's own directory; beside it lies the request that the agent
//! carries to the scheduler, and where the answer appears. Knows no RPC.
//!
//! ```text
//! key and request made --agent joins--> certificate loaded --renewed--> newer certificate loaded
//! ```

mod files;
mod tls;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::watch;

pub use files::ensure_request;
pub use tls::{Caller, find_caller};

use crate::control::Role;
use crate::from_files::FromFiles;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{step} {}", path.display())]
    File { step: &'static str, path: PathBuf, source: std::io::Error },
    #[error("make a key and its request")]
    Generate(#[from] rcgen::Error),
    #[error("{} holds no {what}", path.display())]
    Empty { what: &'static str, path: PathBuf },
    #[error("certificate, key and roots of {name} do not fit together")]
    Tls { name: &'static str, source: Box<dyn std::error::Error + Send + Sync> },
}

/// The process's identity, as far as it has one yet.
#[derive(Debug)]
pub struct Identity {
    credentials: FromFiles<Credentials>,
}

/// A certificate with its key and the roots that peers must come from.
pub struct Credentials {
    /// For serving the fleet: HTTP/2, clients must have a certificate of the fleet.
    pub server: Arc<rustls::ServerConfig>,
    /// For calling another host of the fleet: HTTP/1.1, with this process's own certificate.
    pub client: Arc<rustls::ClientConfig>,
    /// The host this process is of, as its certificate says.
    pub host_id: Option<String>,
    chain_pem: Vec<u8>,
    key_pem: zeroize::Zeroizing<Vec<u8>>,
    roots_pem: Vec<u8>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Credentials(…)")
    }
}

impl Identity {
    /// Makes key and request where they are missing, and loads what is there.
    pub fn open(directory: &Path, role: Role) -> Result<Arc<Self>, Error> {
        let name = role.name();
        ensure_request(directory, name)?;
        let (files, directory) = (files::all(directory, name), directory.to_owned());
        let load = move || tls::load(&directory, name);
        Ok(Arc::new(Self { credentials: FromFiles::new("the fleet certificate", files, load) }))
    }

    /// The newest credentials; none before the host has joined.
    pub fn find(&self) -> Option<Arc<Credentials>> {
        self.credentials.find()
    }

    /// Changes whenever credentials were loaded.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.credentials.changes()
    }

    /// Loads the files when they appear and when they change, for ever.
    pub async fn keep_current(self: Arc<Self>) {
        self.credentials.keep_current().await;
    }
}
