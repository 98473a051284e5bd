//! A server in the world outside, for guests to call: HTTPS on loopback under a root of its own.
//!
//! Remembers every request it got, so that a test or the tour can compare what the guest sent with what arrived.
//! Answers the same to all of them, or serves the files of a directory.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// Known to the stack's egress alone (its own `/etc/hosts`). Not below `localhost`: that is the guest itself.
pub const NAME: &str = "echo.roost.test";
/// What every request is answered with.
pub const ANSWER: &str = "{\"ok\":true}";
/// A request whose path begins so is answered after [`SLOWNESS`].
pub const SLOW: &str = "/slow/";
pub const SLOWNESS: Duration = Duration::from_millis(400);
/// A request whose path begins so is answered when [`Upstream::release`] is called, or never.
pub const HELD: &str = "/held/";
const DEADLINE: Duration = Duration::from_secs(10);
const HELD_AT_MOST: Duration = Duration::from_secs(60);
const BODY_BYTES_MAX: u64 = 1024 * 1024;

/// One request as it arrived.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Like `GET /v1/models`.
    pub line: String,
    pub headers: Vec<(String, String)>,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

#[derive(Debug)]
pub struct Upstream {
    pub port: u16,
    pub root_pem: String,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// The directory that is served, if any.
    root: Option<PathBuf>,
    seen: Mutex<Vec<Seen>>,
    released: Mutex<bool>,
    on_release: Condvar,
}

impl Shared {
    /// Returns when the request may be answered.
    fn wait_for_turn(&self, path: &str) {
        if path.starts_with(SLOW) {
            // Slow on purpose.
            std::thread::sleep(SLOWNESS);
        }
        if path.starts_with(HELD) {
            let released = self.released.lock().unwrap_or_else(PoisonError::into_inner);
            let held = |released: &mut bool| !*released;
            drop(self.on_release.wait_timeout_while(released, HELD_AT_MOST, held));
        }
    }
}

impl Upstream {
    /// Answers [`ANSWER`] to everything until the program ends.
    pub fn start() -> anyhow::Result<Self> {
        Self::listen(None)
    }

    /// Serves the files below `root`, and 404 for what is not there.
    pub fn serving(root: &Path) -> anyhow::Result<Self> {
        Self::listen(Some(root.to_owned()))
    }

    fn listen(root: Option<PathBuf>) -> anyhow::Result<Self> {
        let (root_pem, config) = make_certificates()?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared { root, ..Shared::default() });
        let (config, theirs) = (Arc::new(config), Arc::clone(&shared));
        std::thread::Builder::new().name("upstream".to_owned()).spawn(move || {
            for stream in listener.incoming().flatten() {
                let (config, shared) = (Arc::clone(&config), Arc::clone(&theirs));
                // A caller that breaks off concerns nobody else.
                std::thread::spawn(move || drop(serve(stream, config, &shared)));
            }
        })?;
        Ok(Self { port, root_pem, shared })
    }

    pub fn url(&self, path: &str) -> String {
        format!("https://{NAME}:{}{path}", self.port)
    }

    /// Where it listens, for exceptions from the deny floor.
    pub fn address(&self) -> IpAddr {
        Ipv4Addr::LOCALHOST.into()
    }

    /// Everything that arrived so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Answers every request that is or will be held.
    pub fn release(&self) {
        *self.shared.released.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.shared.on_release.notify_all();
    }
}

fn serve(stream: TcpStream, config: Arc<ServerConfig>, shared: &Shared) -> anyhow::Result<()> {
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(StreamOwned::new(ServerConnection::new(config)?, stream));
    loop {
        let mut request = Seen::default();
        let mut line = String::new();
        if stream.read_line(&mut line)? == 0 {
            return Ok(());
        }
        request.line = line.trim_end().trim_end_matches(" HTTP/1.1").to_owned();
        loop {
            line.clear();
            stream.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            request.headers.push((name.to_owned(), value.to_owned()));
        }
        let length = request.header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
        let mut body = Vec::new();
        stream.by_ref().take(std::cmp::min(length, BODY_BYTES_MAX)).read_to_end(&mut body)?;
        let (line, path) =
            (request.line.clone(), request.line.split(' ').nth(1).unwrap_or_default().to_owned());
        shared.seen.lock().unwrap_or_else(PoisonError::into_inner).push(request);
        shared.wait_for_turn(&path);
        stream.get_mut().write_all(&answer(&line, shared.root.as_deref()))?;
        stream.get_mut().flush()?;
    }
}

/// The whole response to a request line.
fn answer(line: &str, root: Option<&Path>) -> Vec<u8> {
    let Some(root) = root else { return response("200 OK", "application/json", ANSWER.as_bytes()) };
    let file = find_file(line, root).and_then(|path| Some((std::fs::read(&path).ok()?, path)));
    match file {
        Some((page, path)) if path.ends_with("index.html") => response("200 OK", "text/html", &page),
        Some((content, _)) => response("200 OK", "application/octet-stream", &content),
        None => response("404 Not Found", "text/plain", b"no such file"),
    }
}

fn response(status: &str, kind: &str, content: &[u8]) -> Vec<u8> {
    let length = content.len();
    let head = format!("HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\r\n");
    [head.as_bytes(), content].concat()
}

/// The file that a request line names; `index.html` for a directory. Never one outside `root`.
fn find_file(line: &str, root: &Path) -> Option<PathBuf> {
    let path = line.split(' ').nth(1)?.split('?').next()?.trim_start_matches('/');
    let is_below = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    let file = root.join(path);
    is_below.then(|| if file.is_dir() { file.join("index.html") } else { file })
}

fn make_certificates() -> anyhow::Result<(String, ServerConfig)> {
    let root_key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, "Roost tour upstream root");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let root = params.self_signed(&root_key)?;
    let issuer = Issuer::new(params, root_key);
    let key = KeyPair::generate()?;
    let leaf = CertificateParams::new(vec![NAME.to_owned()])?.signed_by(&key, &issuer)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key)
        .context("the upstream's certificate")?;
    Ok((root.pem(), config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_line_names_a_file_below_the_root_or_none() {
        let root = Path::new("/nowhere");
        assert_eq!(find_file("GET /a/b?x=1", root), Some(root.join("a/b")));
        assert_eq!(find_file("GET /", root), Some(root.to_owned()));
        assert_eq!(find_file("GET /../etc/passwd", root), None);
        assert!(answer("GET /a", Some(root)).starts_with(b"HTTP/1.1 404"));
        assert!(answer("GET /a", None).ends_with(ANSWER.as_bytes()));
    }
}
