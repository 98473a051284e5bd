//! The connector with a resolver that lies and a dialler that records. Nothing leaves loopback: a forbidden or
//! public address is seen refused before the dialler hears of it.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test with its own loopback listener")]

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use roost_dial::{Connector, Dial, Error, FixedHost, Resolve, Settings, Timeouts};
use roost_domain::address::{Exception, Floor, Refusal, parse_cidr};
use roost_domain::host_name::{Host, Pattern};
use tokio::net::{TcpListener, TcpStream};

/// Answers every name with the same addresses, or not at all.
#[derive(Debug, Clone, Default)]
struct Lies {
    addresses: Vec<IpAddr>,
    hangs: bool,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Lies {
    fn answering(addresses: &[&str]) -> Self {
        Self { addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(), ..Self::default() }
    }
}

impl Resolve for Lies {
    async fn resolve(&self, host: &Host) -> io::Result<Vec<IpAddr>> {
        self.asked.lock().unwrap().push(host.to_string());
        if self.hangs {
            std::future::pending::<()>().await;
        }
        Ok(self.addresses.clone())
    }
}

/// Records what it is asked to dial; connects every address to one loopback listener, or refuses.
#[derive(Debug, Clone, Default)]
struct Recorder {
    dialled: Arc<Mutex<Vec<SocketAddr>>>,
    target: Option<SocketAddr>,
}

impl Dial for Recorder {
    async fn dial(&self, address: SocketAddr) -> io::Result<TcpStream> {
        self.dialled.lock().unwrap().push(address);
        match self.target {
            Some(target) => TcpStream::connect(target).await,
            None => Err(io::ErrorKind::ConnectionRefused.into()),
        }
    }
}

fn host(text: &str) -> Host {
    Host::parse(text).unwrap()
}

fn quick() -> Timeouts {
    Timeouts {
        resolve: Duration::from_millis(50),
        dial: Duration::from_secs(2),
        total: Duration::from_secs(5),
    }
}

fn settings(exceptions: &[(&str, u16, &str)]) -> Settings {
    let exceptions = exceptions.iter().map(|(name, port, cidr)| Exception {
        name: Pattern::parse(name).unwrap(),
        port: *port,
        cidr: parse_cidr(cidr).unwrap(),
    });
    Settings {
        floor: Floor { own: vec![], exceptions: exceptions.collect() },
        timeouts: quick(),
        hosts: vec![],
    }
}

/// What `name` is answered with, and whether anything was dialled for it.
async fn refused(name: &str, answers: &[&str]) -> (Error, usize) {
    let recorder = Recorder::default();
    let connector = Connector::with(settings(&[]), Lies::answering(answers), recorder.clone());
    let error = connector.connect(&host(name), 443).await.unwrap_err();
    let dialled = recorder.dialled.lock().unwrap().len();
    (error, dialled)
}

#[tokio::test]
async fn c11_c12_c14_a_forbidden_answer_is_never_dialled() {
    for answer in [
        "127.0.0.1",
        "10.1.2.3",
        "192.168.0.1",
        "100.64.0.1",
        "0.0.0.0",
        "198.18.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fd00::1",
        "fe80::1",
        "::ffff:127.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "2001:0:1::1",
    ] {
        let (error, dialled) = refused("rebind.example", &[answer]).await;
        assert!(matches!(error, Error::Address { .. }) && error.is_refusal(), "{answer}: {error}");
        assert_eq!(dialled, 0, "{answer}");
    }
}

#[tokio::test]
async fn one_forbidden_address_forbids_the_name() {
    let (error, dialled) = refused("mixed.example", &["93.184.216.34", "127.0.0.1"]).await;
    assert!(matches!(error, Error::Address { .. }), "{error}");
    assert_eq!(dialled, 0);
}

#[tokio::test]
async fn c13_metadata_names_are_not_even_looked_up() {
    let lies = Lies::answering(&["93.184.216.34"]);
    let connector = Connector::with(
        settings(&[("*.google.internal", 80, "0.0.0.0/0")]),
        lies.clone(),
        Recorder::default(),
    );
    let error = connector.connect(&host("metadata.google.internal"), 80).await.unwrap_err();
    assert!(matches!(error, Error::Name { source: Refusal::Metadata, .. }), "{error}");
    assert!(lies.asked.lock().unwrap().is_empty());
    let connector = Connector::with(
        settings(&[("a.example", 80, "0.0.0.0/0")]),
        Lies::answering(&["169.254.169.254"]),
        Recorder::default(),
    );
    let error = connector.connect(&host("a.example"), 80).await.unwrap_err();
    assert!(matches!(error, Error::Address { source: Refusal::Metadata, .. }), "{error}");
}

#[tokio::test]
async fn literal_addresses_pass_the_same_floor_without_a_lookup() {
    let lies = Lies::answering(&["93.184.216.34"]);
    let recorder = Recorder::default();
    let connector = Connector::with(settings(&[]), lies.clone(), recorder.clone());
    for literal in ["127.0.0.1", "[::1]", "169.254.169.254"] {
        assert!(connector.connect(&host(literal), 80).await.unwrap_err().is_refusal());
    }
    assert!(lies.asked.lock().unwrap().is_empty() && recorder.dialled.lock().unwrap().is_empty());
}

#[tokio::test]
async fn an_excepted_loopback_listener_is_reached_and_nothing_else() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let excepted = settings(&[("upstream.example", address.port(), "127.0.0.1/32")]);
    let connector = Connector::with(excepted, Lies::answering(&["127.0.0.1"]), roost_dial::TcpDialler);
    let (stream, dialled) = connector.connect(&host("upstream.example"), address.port()).await.unwrap();
    assert_eq!((dialled, stream.peer_addr().unwrap()), (address, address));
    assert!(stream.nodelay().unwrap());
    assert!(connector.connect(&host("other.example"), address.port()).await.unwrap_err().is_refusal());
    assert!(connector.connect(&host("upstream.example"), 1).await.unwrap_err().is_refusal());
}

#[tokio::test]
async fn a_peer_that_is_not_what_was_dialled_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let recorder = Recorder { target: Some(listener.local_addr().unwrap()), ..Recorder::default() };
    let connector = Connector::with(settings(&[]), Lies::answering(&["93.184.216.34"]), recorder);
    let error = connector.connect(&host("a.example"), 443).await.unwrap_err();
    assert!(matches!(error, Error::Peer { .. }) && error.is_refusal(), "{error}");
}

#[tokio::test]
async fn every_checked_address_is_tried_once_in_turn() {
    let recorder = Recorder::default();
    let answers = ["93.184.216.34", "93.184.216.35", "2606:2800::1", "93.184.216.34"];
    let connector = Connector::with(settings(&[]), Lies::answering(&answers), recorder.clone());
    let error = connector.connect(&host("a.example"), 443).await.unwrap_err();
    assert!(matches!(error, Error::Dial { .. }) && !error.is_refusal(), "{error}");
    let dialled: Vec<String> = recorder.dialled.lock().unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(dialled, ["93.184.216.34:443", "[2606:2800::1]:443", "93.184.216.35:443"]);
}

#[tokio::test]
async fn no_answer_and_no_address_are_told_apart() {
    let hanging =
        Connector::with(settings(&[]), Lies { hangs: true, ..Lies::default() }, Recorder::default());
    let error = hanging.connect(&host("a.example"), 443).await.unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    let (error, _) = refused("a.example", &[]).await;
    assert!(matches!(error, Error::NoAddress { .. }), "{error}");
}

#[tokio::test]
async fn the_system_resolver_finds_localhost_and_the_floor_refuses_it() {
    let connector = Connector::new(settings(&[]));
    let error = connector.connect(&host("localhost"), 80).await.unwrap_err();
    assert!(matches!(error, Error::Address { address, .. } if address.is_loopback()), "{error}");
}

#[tokio::test]
async fn a_fixed_address_is_not_looked_up_and_still_checked() {
    let fixed =
        |address: &str| FixedHost { name: host("models.lan"), addresses: vec![address.parse().unwrap()] };
    let recorder = Recorder::default();
    // The resolver would lie; it is not asked.
    let inside = Settings { hosts: vec![fixed("10.1.2.3")], ..settings(&[]) };
    let connector = Connector::with(inside, Lies::answering(&["93.184.216.34"]), recorder.clone());
    let error = connector.connect(&host("models.lan"), 443).await.unwrap_err();
    assert!(error.is_refusal(), "{error}");
    assert!(recorder.dialled.lock().unwrap().is_empty());
    let excepted =
        Settings { hosts: vec![fixed("10.1.2.3")], ..settings(&[("models.lan", 443, "10.1.2.3/32")]) };
    let connector = Connector::with(excepted, Lies::answering(&[]), recorder.clone());
    assert_eq!(connector.resolve(&host("models.lan"), 443).await.unwrap(), ["10.1.2.3:443".parse().unwrap()]);
}
