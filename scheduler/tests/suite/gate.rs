//! Who may call what: every RPC of the contract with every identity.

use roost_proto::host as proto;
use roost_scheduler::fleet::{Allowed, CALLERS};
use roost_scheduler::pki::Role;
use roost_scheduler::store::host;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::world::{Keyed, World};

const CONTRACT: &str = include_str!("../../../crates/proto/proto/roost/host.proto");
/// Services that hosts serve themselves.
const SERVED_BY_HOSTS: [&str; 2] = ["Ensure", "Gateway"];

/// Every RPC the contract gives to the scheduler.
fn rpcs() -> Vec<String> {
    let mut rpcs = Vec::new();
    let mut service = "";
    for line in CONTRACT.lines() {
        if let Some(rest) = line.strip_prefix("service ") {
            service = rest.split([' ', '{']).next().unwrap();
        }
        if let Some((_, rest)) = line.split_once("rpc ")
            && !SERVED_BY_HOSTS.contains(&service)
        {
            rpcs.push(format!("/roost.host.v1.{service}/{}", rest.split('(').next().unwrap().trim()));
        }
    }
    rpcs
}

/// Calls with an empty message; a gate's refusal comes before anything is read.
async fn call(channel: &Channel, path: &str) -> Result<(), Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<proto::WatchLeasesRequest, proto::WatchLeasesRequest>::default();
    let path = PathAndQuery::try_from(path).unwrap();
    grpc.server_streaming(Request::new(proto::WatchLeasesRequest {}), path, codec).await.map(|_| ())
}

fn is_refused_by_gate(outcome: &Result<(), Status>) -> bool {
    let refusals = [
        (Code::PermissionDenied, "may call this"),
        (Code::PermissionDenied, "may not call this"),
        (Code::PermissionDenied, "not part of the fleet"),
        (Code::Unauthenticated, "a certificate of the fleet is needed"),
        (Code::Unauthenticated, "a certificate of a caller"),
    ];
    let said = |status: &Status| {
        refusals.iter().any(|(code, text)| status.code() == *code && status.message().contains(text))
    };
    outcome.as_ref().err().is_some_and(said)
}

#[test]
fn the_table_has_exactly_the_contracts_rpcs() {
    let mut listed: Vec<&str> = CALLERS.iter().map(|(path, _)| *path).collect();
    let mut contract = rpcs();
    listed.sort_unstable();
    contract.sort_unstable();
    assert!(contract.len() >= 9, "{contract:?}");
    assert_eq!(listed, contract);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_rpc_lets_in_exactly_its_callers() {
    let world = World::start().await;
    let (host, gone) = (world.join().await, world.join().await);
    let id = gone.id.clone();
    world.store.write(move |tx| host::set_state(tx, &id, "removed")).await.unwrap();
    let own = world.pki.scheduler();
    let scheduler = Keyed { chain_pem: own.chain_pem.clone(), key_pem: own.key_pem.clone() };
    let identities: [(&str, Option<&Keyed>, Option<Role>); 8] = [
        ("agent", Some(&host.agent), Some(Role::Agent)),
        ("edge", Some(&host.edge), Some(Role::Edge)),
        ("egress", Some(&host.egress), Some(Role::Egress)),
        ("the scheduler", Some(&scheduler), None),
        ("a removed host's agent", Some(&gone.agent), None),
        ("a removed host's edge", Some(&gone.edge), None),
        ("a removed host's egress", Some(&gone.egress), None),
        ("nobody", None, None),
    ];
    for (name, keyed, role) in identities {
        let channel = world.channel(keyed).await;
        for (path, allowed) in CALLERS {
            let outcome = call(&channel, path).await;
            let is_let_in =
                *allowed == Allowed::Anybody || role.is_some_and(|role| *allowed == Allowed::Host(role));
            assert_eq!(!is_refused_by_gate(&outcome), is_let_in, "{name} at {path}: {outcome:?}");
        }
        let unlisted = call(&channel, "/roost.host.v1.Fleet/Unlisted").await;
        assert_eq!(unlisted.unwrap_err().code(), Code::PermissionDenied, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_fleets_certificate_does_not_even_connect() {
    let (world, other) = (World::start().await, World::start().await);
    let stranger = other.join().await;
    let tls = tonic::transport::ClientTlsConfig::new()
        .ca_certificate(tonic::transport::Certificate::from_pem(world.pki.fleet_roots_pem()))
        .identity(tonic::transport::Identity::from_pem(&stranger.agent.chain_pem, &stranger.agent.key_pem))
        .domain_name(roost_scheduler::pki::SCHEDULER_NAME);
    let endpoint =
        Channel::from_shared(format!("https://{}", world.address)).unwrap().tls_config(tls).unwrap();
    // TLS 1.3 tells a client that its certificate was refused only after it has connected.
    let refused = match endpoint.connect().await {
        Err(_) => true,
        Ok(channel) => {
            let mut client = proto::fleet_client::FleetClient::new(channel);
            client
                .sync(proto::SyncRequest::default())
                .await
                .is_err_and(|status| status.code() != Code::PermissionDenied)
        }
    };
    assert!(refused);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_speaks_only_of_itself() {
    let world = World::start().await;
    let (host, other) = (world.join().await, world.join().await);
    let mut client = proto::fleet_client::FleetClient::new(world.channel(Some(&host.agent)).await);
    let sync = proto::SyncRequest { host_id: other.id.clone(), ..Default::default() };
    assert_eq!(client.sync(sync).await.unwrap_err().code(), Code::PermissionDenied);
    let upload = proto::UploadRequest { host_id: other.id.clone(), rows: vec![] };
    assert_eq!(client.upload(upload).await.unwrap_err().code(), Code::PermissionDenied);
}
