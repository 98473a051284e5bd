//! Joining and renewing: what is signed, for whom, and what is refused.

use rcgen::{BasicConstraints, CertificateParams, IsCa, SanType};
use roost_daemon::clock::Clock as _;
use roost_proto::host as proto;
use roost_proto::host::fleet_client::FleetClient;
use tonic::Code;
use x509_parser::extensions::GeneralName;

use crate::world::{Pending, World, info};

struct Read {
    uris: Vec<String>,
    dns: Vec<String>,
    is_ca: bool,
    path_length: Option<u32>,
    days: i64,
    public_key: Vec<u8>,
}

fn read(pem: &str) -> Read {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
    let certificate = pem.parse_x509().unwrap();
    let names =
        certificate.subject_alternative_name().unwrap().map(|names| names.value.general_names.clone());
    let names = names.unwrap_or_default();
    let constraints = certificate.basic_constraints().unwrap().map(|found| found.value.clone());
    let validity = certificate.validity();
    Read {
        uris: names
            .iter()
            .filter_map(|name| if let GeneralName::URI(uri) = name { Some((*uri).to_owned()) } else { None })
            .collect(),
        dns: names
            .iter()
            .filter_map(
                |name| if let GeneralName::DNSName(dns) = name { Some((*dns).to_owned()) } else { None },
            )
            .collect(),
        is_ca: constraints.as_ref().is_some_and(|found| found.ca),
        path_length: constraints.and_then(|found| found.path_len_constraint),
        days: (validity.not_after.timestamp() - validity.not_before.timestamp()) / 86_400,
        public_key: certificate.public_key().subject_public_key.data.to_vec(),
    }
}

fn is_signed_by(pem: &str, root_pem: &str) -> bool {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
    let (_, root) = x509_parser::pem::parse_x509_pem(root_pem.as_bytes()).unwrap();
    let (certificate, root) = (pem.parse_x509().unwrap(), root.parse_x509().unwrap());
    certificate.verify_signature(Some(root.public_key())).is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_gets_its_three_identities_and_an_intermediate() {
    let world = World::start().await;
    let host = world.join().await;
    let fleet_root = String::from_utf8(host.reply.fleet_roots_pem.to_vec()).unwrap();
    let egress_root = String::from_utf8(host.reply.egress_roots_pem.to_vec()).unwrap();
    for (role, keyed) in [("agent", &host.agent), ("edge", &host.edge), ("egress", &host.egress)] {
        let read = read(&keyed.chain_pem);
        assert_eq!(read.uris, [format!("roost://host/{}/{role}", host.id)]);
        assert_eq!(read.dns, [format!("{role}.{}.roost.internal", host.id)]);
        assert_eq!((read.is_ca, read.days), (false, 7));
        assert!(is_signed_by(&keyed.chain_pem, &fleet_root));
        assert!(!is_signed_by(&keyed.chain_pem, &egress_root), "the egress root signs nothing else");
    }
    let intermediate = read(&host.egress_ca.chain_pem);
    assert_eq!((intermediate.is_ca, intermediate.path_length, intermediate.days), (true, Some(0), 7));
    assert!(intermediate.uris.is_empty() && intermediate.dns.is_empty());
    assert!(is_signed_by(&host.egress_ca.chain_pem, &egress_root));
    assert!(!is_signed_by(&host.egress_ca.chain_pem, &fleet_root));
    let preview = read(std::str::from_utf8(&host.reply.preview_chain_pem).unwrap());
    assert_eq!(preview.dns, ["*.sandbox.roost.localhost", "*.preview.roost.localhost"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_serves_once_and_not_after_its_time() {
    let world = World::start().await;
    let token = world.join_token().await;
    let join = |token: &str| proto::JoinRequest { token: token.into(), requests: vec![], info: Some(info()) };
    let mut client = FleetClient::new(world.channel(None).await);
    client.join(join(&token)).await.unwrap();
    for bad in [token.as_str(), "", "roost_join_guess"] {
        assert_eq!(client.join(join(bad)).await.unwrap_err().code(), Code::Unauthenticated, "{bad}");
    }
    let late = world.join_token().await;
    world.clock.advance_us(60_000_000);
    assert_eq!(client.join(join(&late)).await.unwrap_err().code(), Code::Unauthenticated);
    let raced = world.join_token().await;
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let (mut client, join) = (client.clone(), join(&raced));
            tokio::spawn(async move { client.join(join).await.is_ok() })
        })
        .collect();
    let mut joined = 0;
    for task in tasks {
        joined += u32::from(task.await.unwrap());
    }
    assert_eq!(joined, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_for_more_than_ones_own_are_refused_and_cost_no_token() {
    let world = World::start().await;
    let token = world.join_token().await;
    let mut client = FleetClient::new(world.channel(None).await);
    let mut named = CertificateParams::default();
    named.subject_alt_names.push(SanType::URI("roost://scheduler".try_into().unwrap()));
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let mut bent = Pending::new("agent").request();
    let other = Pending::new("agent").request();
    bent.csr_pem = swap_key(&bent.csr_pem, &other.csr_pem).into();
    let request = |role: &str, pem: &str| proto::CertificateRequest {
        role: role.into(),
        csr_pem: pem.to_owned().into(),
    };
    let bad = [
        ("another name", vec![Pending::asking("agent", named).request()]),
        ("an authority", vec![Pending::asking("edge", authority).request()]),
        ("not signed by its key", vec![bent]),
        ("no PEM", vec![request("agent", "hello")]),
        ("an unknown role", vec![Pending::new("scheduler").request()]),
        ("twice the same", vec![Pending::new("agent").request(), Pending::new("agent").request()]),
        ("too long", vec![request("agent", &"x".repeat(20_000))]),
    ];
    for (what, requests) in bad {
        let join = proto::JoinRequest { token: token.clone(), requests, info: Some(info()) };
        let status = client.join(join).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{what}: {status:?}");
    }
    let good =
        proto::JoinRequest { token, requests: vec![Pending::new("agent").request()], info: Some(info()) };
    client.join(good).await.unwrap();
}

/// The body of one request under the signature of another.
fn swap_key(one: &[u8], other: &[u8]) -> String {
    let decode = |pem: &[u8]| {
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem).unwrap();
        pem.contents
    };
    let (mut one, other) = (decode(one), decode(other));
    // The signature is the last part; both are about the same length, so only its tail is exchanged.
    let (at, tail) = (one.len() - 16, other.len() - 16);
    one[at..].copy_from_slice(&other[tail..]);
    let text = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &one);
    format!("-----BEGIN CERTIFICATE REQUEST-----\n{text}\n-----END CERTIFICATE REQUEST-----\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewal_is_for_the_caller_with_its_new_key() {
    let world = World::start().await;
    let host = world.join().await;
    let mut client = FleetClient::new(world.channel(Some(&host.agent)).await);
    let pending = Pending::new("egress");
    let request = proto::RenewRequest { requests: vec![pending.request()] };
    let reply = client.renew(request).await.unwrap().into_inner();
    let certificate = &reply.certificates[0];
    let read = read(std::str::from_utf8(&certificate.chain_pem).unwrap());
    assert_eq!(read.uris, [format!("roost://host/{}/egress", host.id)]);
    assert_eq!(read.public_key, pending.key.public_key_raw());
    assert_eq!(certificate.not_after_us, world.clock.now_us() + 7 * 86_400_000_000);
}

#[test]
fn roots_survive_a_restart_and_egress_roots_overlap() {
    let directory = tempfile::tempdir().unwrap();
    let open = |now_us| roost_scheduler::pki::Pki::ensure(directory.path(), None, now_us).unwrap();
    let now_us = roost_daemon::clock::now_us();
    let (first, again) = (open(now_us), open(now_us));
    assert_eq!(first.fleet_roots_pem(), again.fleet_roots_pem());
    assert_eq!(first.egress_roots_pem(), again.egress_roots_pem());
    assert!(first.preview().is_none() && first.api().is_none());
    let nine_years_us = 9 * 365 * 86_400_000_000 + 30 * 86_400_000_000;
    let later = open(now_us + nine_years_us);
    let count = |pem: String| pem.matches("BEGIN CERTIFICATE").count();
    assert_eq!(count(later.egress_roots_pem()), 2, "a successor before the first ends");
    assert!(later.egress_roots_pem().contains(first.egress_roots_pem().trim()));
    assert_eq!(
        count(open(now_us + nine_years_us + 366 * 86_400_000_000).egress_roots_pem()),
        1,
        "the first has ended"
    );
    use std::os::unix::fs::PermissionsExt;
    for name in ["fleet-root.key", "egress"] {
        let mode = std::fs::metadata(directory.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{name}");
    }
}
