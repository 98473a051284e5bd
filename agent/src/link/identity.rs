//! This host's identity in the fleet: keys, certificates, and how they reach the data plane.
//!
//! The agent's own key is made here and stays in its state directory. The data-plane processes make theirs, in
//! directories of their own; the agent carries requests and certificates between them and the scheduler, never a
//! key — but for the development preview certificate, which the scheduler hands out whole.

use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use roost_proto::host::fleet_client::FleetClient;
use roost_proto::host::{Certificate, CertificateRequest, JoinReply, JoinRequest};
use tonic::transport::{ClientTlsConfig, Endpoint};
use x509_parser::extensions::GeneralName;

use super::Error;
use super::session::Context;
use crate::config;
use crate::host::file;
use crate::sandbox::live::EGRESS_ROOTS_FILE;

/// The name in the scheduler's certificate, whatever address it is reached at.
pub(super) const SCHEDULER_NAME: &str = "scheduler.roost.internal";
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
const HOST_ID: &str = "host_id";

/// A joined host.
#[derive(Clone)]
pub struct Identity {
    pub host_id: String,
    pub fleet_roots_pem: Vec<u8>,
    chain_pem: Vec<u8>,
    key_pem: Vec<u8>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Identity").field("host_id", &self.host_id).finish_non_exhaustive()
    }
}

impl Identity {
    pub(super) fn for_tls(&self) -> tonic::transport::Identity {
        tonic::transport::Identity::from_pem(&self.chain_pem, &self.key_pem)
    }
}

/// Whose certificate request it is, and where it and its answer lie.
struct Request {
    role: &'static str,
    request: PathBuf,
    certificate: PathBuf,
}

/// The identity on disk, or a new one from the scheduler.
pub(super) async fn ensure(context: &Context) -> Result<Identity, Error> {
    let dir = &context.identity_dir;
    if let Some(host_id) = context.store.find_fact(HOST_ID).await? {
        return load(dir, host_id);
    }
    let token_file = context.settings.join_token_file.as_ref().ok_or(Error::NoToken)?;
    let token = String::from_utf8_lossy(&read("reading the join token", token_file)?).trim().to_owned();
    ensure_own_key(dir)?;
    let requests = requests(dir, &context.settings);
    let mut csrs = Vec::new();
    for request in &requests {
        csrs.push(CertificateRequest { role: request.role.to_owned(), csr_pem: read_request(request)?.into() });
    }
    let root = read("reading the fleet root", &context.settings.root_file)?;
    let (tls, endpoint) = endpoint(&context.settings, &root)?;
    let channel = endpoint.tls_config(tls)?.connect().await?;
    let join = JoinRequest { token, requests: csrs, info: Some(context.info.clone()) };
    let reply = FleetClient::new(channel).join(join).await.map_err(Error::refused("Join"))?.into_inner();
    distribute(dir, &context.settings, &requests, &reply)?;
    // Last, so that a crash before it joins again (with a new token) rather than half.
    context.store.record_fact(HOST_ID, reply.host_id.clone()).await?;
    load(dir, reply.host_id)
}

/// How the scheduler is reached, trusting `roots_pem` alone.
pub(super) fn endpoint(
    settings: &config::Scheduler,
    roots_pem: &[u8],
) -> Result<(ClientTlsConfig, Endpoint), Error> {
    let tls = ClientTlsConfig::new()
        .ca_certificate(tonic::transport::Certificate::from_pem(roots_pem))
        .domain_name(SCHEDULER_NAME);
    let endpoint = Endpoint::from_shared(format!("https://{}", settings.address))
        .map_err(|_| Error::Address(settings.address.clone()))?
        .connect_timeout(CONNECT_DEADLINE)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(20))
        .keep_alive_while_idle(true);
    Ok((tls, endpoint))
}

fn requests(dir: &Path, settings: &config::Scheduler) -> [Request; 4] {
    let of = |role, dir: &Path, name: &str| Request {
        role,
        request: dir.join(format!("{name}.csr")),
        certificate: dir.join(format!("{name}.pem")),
    };
    [
        of("agent", dir, "agent"),
        of("edge", &settings.edge_dir, "edge"),
        of("egress", &settings.egress_dir, "egress"),
        of("egress_ca", &settings.egress_dir, "egress-ca"),
    ]
}

fn read_request(request: &Request) -> Result<Vec<u8>, Error> {
    std::fs::read(&request.request)
        .map_err(|_| Error::NoRequest { role: request.role, path: request.request.clone() })
}

fn ensure_own_key(dir: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(dir).map_err(failed("making the directory", dir))?;
    let (key_file, request_file) = (dir.join("agent.key"), dir.join("agent.csr"));
    if key_file.exists() && request_file.exists() {
        return Ok(());
    }
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let request = CertificateParams::default().serialize_request(&key)?;
    write_private(&key_file, key.serialize_pem().as_bytes(), None)?;
    write(&request_file, request.pem()?.as_bytes())
}

/// Puts each certificate beside its request, where its owner watches for it.
fn distribute(
    dir: &Path,
    settings: &config::Scheduler,
    requests: &[Request],
    reply: &JoinReply,
) -> Result<(), Error> {
    for request in requests {
        let found = reply.certificates.iter().find(|certificate| certificate.role == request.role);
        let Certificate { chain_pem, .. } =
            found.ok_or_else(|| Error::Malformed(format!("no certificate for {}", request.role)))?;
        write(&request.certificate, chain_pem)?;
    }
    for dir in [dir, &settings.egress_dir, &settings.edge_dir] {
        write(&dir.join("roots.pem"), &reply.fleet_roots_pem)?;
    }
    write(&dir.join(EGRESS_ROOTS_FILE), &reply.egress_roots_pem)?;
    if !reply.preview_chain_pem.is_empty() {
        write_private(&settings.edge_dir.join("preview.key"), &reply.preview_key_pem, Some(&settings.edge_dir))?;
        write(&settings.edge_dir.join("preview.pem"), &reply.preview_chain_pem)?;
    }
    Ok(())
}

fn load(dir: &Path, host_id: String) -> Result<Identity, Error> {
    let part = |what, name: &str| read(what, &dir.join(name));
    Ok(Identity {
        host_id,
        fleet_roots_pem: part("reading the fleet roots", "roots.pem")?,
        chain_pem: part("reading the certificate", "agent.pem")?,
        key_pem: part("reading the key", "agent.key")?,
    })
}

/// The first URI among a certificate's alternative names.
pub(super) fn find_uri(der: &[u8]) -> Option<String> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    names.value.general_names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    })
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { what, path, source }
}

fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(failed(what, path))
}

fn write(path: &Path, contents: &[u8]) -> Result<(), Error> {
    file::write_atomically(path, contents).map_err(|error| failed("writing", path)(std::io::Error::other(error)))
}

/// Readable by its owner alone; with `like`, given to the owner of that directory.
fn write_private(path: &Path, contents: &[u8], like: Option<&Path>) -> Result<(), Error> {
    use std::io::Write;
    use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
    let unfinished = path.with_extension(format!("key{}", file::UNFINISHED));
    let begun = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished);
    let mut private = begun.map_err(failed("making", &unfinished))?;
    private.write_all(contents).and_then(|()| private.sync_all()).map_err(failed("writing", &unfinished))?;
    if let Some(dir) = like {
        let owner = std::fs::metadata(dir).map_err(failed("looking at", dir))?;
        chown(&unfinished, Some(owner.uid()), Some(owner.gid())).map_err(failed("giving away", &unfinished))?;
    }
    std::fs::rename(&unfinished, path).map_err(failed("placing", path))
}
