//! The certificate browsers see: loaded when it is there, loaded again when its files change.
//!
//! The operator's files, or the development certificate that the agent put into the process's directory when the
//! host joined. Until there is one, connections are refused.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::config;
use crate::from_files::FromFiles;

const DEVELOPMENT_CHAIN: &str = "preview.pem";
const DEVELOPMENT_KEY: &str = "preview.key";

#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("read {}", path.display())]
    Read { path: PathBuf, source: rustls::pki_types::pem::Error },
    #[error("{} holds no certificate", path.display())]
    Empty { path: PathBuf },
    #[error("certificate and key do not fit together")]
    Tls(#[from] rustls::Error),
}

/// The TLS settings of the preview listeners.
#[derive(Debug)]
pub struct PreviewCertificate(FromFiles<ServerConfig>);

impl PreviewCertificate {
    pub fn new(directory: &Path, settings: &config::Preview) -> Arc<Self> {
        let own = |file: &Option<PathBuf>, name| file.clone().unwrap_or_else(|| directory.join(name));
        let chain = own(&settings.certificate_file, DEVELOPMENT_CHAIN);
        let key = own(&settings.key_file, DEVELOPMENT_KEY);
        let files = vec![chain.clone(), key.clone()];
        Arc::new(Self(FromFiles::new("the preview certificate", files, move || load(&chain, &key))))
    }

    pub fn find(&self) -> Option<Arc<ServerConfig>> {
        self.0.find()
    }

    /// Loads the files when they appear and when they change, for ever.
    pub async fn keep_current(self: Arc<Self>) {
        self.0.keep_current().await;
    }
}

fn load(chain: &Path, key: &Path) -> Result<ServerConfig, Error> {
    let read = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::Read { path, source }
    };
    let certificates: Vec<_> = CertificateDer::pem_file_iter(chain)
        .and_then(Iterator::collect::<Result<_, _>>)
        .map_err(read(chain))?;
    if certificates.is_empty() {
        return Err(Error::Empty { path: chain.to_owned() });
    }
    let key = PrivateKeyDer::from_pem_file(key).map_err(read(key))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(certificates, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}
