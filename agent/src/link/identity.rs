//! This host's identity in the fleet: keys, certificates, and how they reach the data plane.
//!
//! The agent's own key is made here and stays in its state directory. The data-plane processes make theirs, in
//! directories of their own; the agent carries requests and certificates between them and the scheduler, never a
//! key — but for the development preview certificate, which the scheduler hands out whole.

use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use roost_proto::host::fleet_client::FleetClient;
use roost_proto::host::{Certificate, CertificateRequest, JoinReply, JoinRequest, RenewReply, RenewRequest};
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
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
const REQUEST_MAX_BYTES: u64 = 64 * 1024;

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
    let csrs = read_requests(&requests)?;
    let root = read("reading the fleet root", &context.settings.root_file)?;
    let (tls, endpoint) = endpoint(&context.settings, &root)?;
    let channel = endpoint.tls_config(tls)?.connect().await?;
    let join = JoinRequest { token, requests: csrs, info: Some(context.info.clone()) };
    let reply = FleetClient::new(channel).join(join).await.map_err(Error::refused("Join"))?.into_inner();
    place_certificates(&requests, &reply.certificates)?;
    place_roots(dir, &context.settings, &reply.fleet_roots_pem, &reply.egress_roots_pem)?;
    place_preview(&context.settings, &reply)?;
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

/// Reads a request out of another user's directory: only a plain file of a sane size, never where a link leads.
fn read_request(request: &Request) -> Result<Vec<u8>, Error> {
    let absent = || Error::NoRequest { role: request.role, path: request.request.clone() };
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let opened = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(&request.request);
    let opened = opened.map_err(|_| absent())?;
    let found = opened.metadata().map_err(failed("looking at", &request.request))?;
    if !found.is_file() || found.len() > REQUEST_MAX_BYTES {
        return Err(absent());
    }
    let mut contents = Vec::new();
    let read = opened.take(REQUEST_MAX_BYTES).read_to_end(&mut contents);
    read.map_err(failed("reading", &request.request))?;
    Ok(contents)
}

fn ensure_own_key(dir: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(dir).map_err(failed("making the directory", dir))?;
    let (key_file, request_file) = (dir.join("agent.key"), dir.join("agent.csr"));
    if key_file.exists() && request_file.exists() {
        return Ok(());
    }
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let request = CertificateParams::default().serialize_request(&key)?;
    write(&key_file, key.serialize_pem().as_bytes())?;
    write(&request_file, request.pem()?.as_bytes())
}

/// Renews every certificate of this host once any of them is past half its life. Returns whether it did.
pub(super) async fn renew_if_due(
    context: &Context,
    client: &mut FleetClient<Channel>,
) -> Result<bool, Error> {
    let dir = &context.identity_dir;
    let requests = requests(dir, &context.settings);
    let now_s = roost_daemon::clock::now_us() / 1_000_000;
    let is_due = |request: &Request| {
        let chain = std::fs::read(&request.certificate).unwrap_or_default();
        // One that cannot be read is not there: it is asked for again.
        find_half_life_s(&chain).is_none_or(|half_life_s| now_s >= half_life_s)
    };
    if !requests.iter().any(is_due) {
        return Ok(false);
    }
    let renew = RenewRequest { requests: read_requests(&requests)? };
    let RenewReply { certificates, fleet_roots_pem, egress_roots_pem } =
        client.renew(renew).await.map_err(Error::refused("Renew"))?.into_inner();
    place_certificates(&requests, &certificates)?;
    place_roots(dir, &context.settings, &fleet_roots_pem, &egress_roots_pem)?;
    Ok(true)
}

/// The middle of the first certificate's validity, in seconds since 1970.
fn find_half_life_s(chain_pem: &[u8]) -> Option<i64> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(chain_pem).ok()?;
    let certificate = pem.parse_x509().ok()?;
    let validity = certificate.validity();
    Some((validity.not_before.timestamp() + validity.not_after.timestamp()) / 2)
}

fn read_requests(requests: &[Request]) -> Result<Vec<CertificateRequest>, Error> {
    let read = |request: &Request| {
        Ok(CertificateRequest { role: request.role.to_owned(), csr_pem: read_request(request)?.into() })
    };
    requests.iter().map(read).collect()
}

/// Puts each certificate beside its request, where its owner watches for it.
fn place_certificates(requests: &[Request], certificates: &[Certificate]) -> Result<(), Error> {
    for request in requests {
        let found = certificates.iter().find(|certificate| certificate.role == request.role);
        let found = found.ok_or_else(|| Error::Malformed(format!("no certificate for {}", request.role)))?;
        write(&request.certificate, &found.chain_pem)?;
    }
    Ok(())
}

fn place_roots(dir: &Path, settings: &config::Scheduler, fleet: &[u8], egress: &[u8]) -> Result<(), Error> {
    for dir in [dir, &settings.egress_dir, &settings.edge_dir] {
        write(&dir.join("roots.pem"), fleet)?;
    }
    write(&dir.join(EGRESS_ROOTS_FILE), egress)
}

/// The development certificate of previews, for edge alone; operators bring their own instead.
fn place_preview(settings: &config::Scheduler, reply: &JoinReply) -> Result<(), Error> {
    if reply.preview_chain_pem.is_empty() {
        return Ok(());
    }
    write(&settings.edge_dir.join("preview.key"), &reply.preview_key_pem)?;
    write(&settings.edge_dir.join("preview.pem"), &reply.preview_chain_pem)
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

/// Places a file for the owner of its directory alone. The directories are other users' as well, who may have put
/// anything under any name there: nothing that is there is written to, and only what was made here is given away.
fn write(path: &Path, contents: &[u8]) -> Result<(), Error> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    let owner = std::fs::metadata(dir).map_err(failed("looking at", dir))?;
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(file::UNFINISHED);
    let unfinished = PathBuf::from(unfinished);
    file::remove_if_there(&unfinished)
        .map_err(|error| failed("clearing", &unfinished)(std::io::Error::other(error)))?;
    let begun = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished);
    let mut begun = begun.map_err(failed("making", &unfinished))?;
    begun.write_all(contents).and_then(|()| begun.sync_all()).map_err(failed("writing", &unfinished))?;
    fchown(&begun, Some(owner.uid()), Some(owner.gid())).map_err(failed("giving away", &unfinished))?;
    std::fs::rename(&unfinished, path).map_err(failed("placing", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_due_in_the_middle_of_its_life() {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::default();
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = rcgen::date_time_ymd(2026, 1, 3);
        let pem = params.self_signed(&key).unwrap().pem();
        let middle = rcgen::date_time_ymd(2026, 1, 2).unix_timestamp();
        assert_eq!(find_half_life_s(pem.as_bytes()), Some(middle));
        assert_eq!(find_half_life_s(b"nothing"), None);
    }

    #[test]
    fn the_owner_of_a_certificate_is_its_uri() {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names.push(rcgen::SanType::DnsName("scheduler".try_into().unwrap()));
        params.subject_alt_names.push(rcgen::SanType::URI("roost://scheduler".try_into().unwrap()));
        let certificate = params.self_signed(&key).unwrap();
        assert_eq!(find_uri(certificate.der()).as_deref(), Some("roost://scheduler"));
        assert_eq!(find_uri(b"nothing"), None);
    }

    #[test]
    fn a_file_is_for_the_owner_of_its_directory_alone() {
        use std::os::unix::fs::{PermissionsExt, chown};
        let folder = tempfile::tempdir().unwrap();
        chown(folder.path(), Some(60_600), Some(60_600)).expect("this test runs as root");
        let path = folder.path().join("egress.pem");
        write(&path, b"certificate").unwrap();
        let found = std::fs::metadata(&path).unwrap();
        assert_eq!((found.permissions().mode() & 0o777, found.uid(), found.gid()), (0o600, 60_600, 60_600));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn links_planted_by_a_data_plane_process_lead_nowhere() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::tempdir().unwrap();
        let precious = folder.path().join("precious");
        std::fs::write(&precious, b"untouched").unwrap();
        let path = folder.path().join("egress.pem");
        symlink(&precious, folder.path().join("egress.pem.unfinished")).unwrap();
        symlink(&precious, &path).unwrap();
        write(&path, b"certificate").unwrap();
        assert_eq!(std::fs::read(&precious).unwrap(), b"untouched");
        assert_eq!(std::fs::read(&path).unwrap(), b"certificate");
        symlink(&precious, folder.path().join("egress.csr")).unwrap();
        let request =
            Request { role: "egress", request: folder.path().join("egress.csr"), certificate: path };
        assert!(matches!(read_request(&request), Err(Error::NoRequest { .. })));
    }
}
