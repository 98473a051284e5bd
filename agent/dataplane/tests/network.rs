//! The gateway on the network: the scheduler and nobody else.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

mod support;

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use roost_proto::guest::{GUEST_RPC_PORT, StatusRequest};
use roost_proto::host::SANDBOX_METADATA;
use roost_proto::host::gateway_client::GatewayClient;
use support::agent::{self, Agent, Reply};
use support::eventually;
use support::fleet::{Fleet, Leaf};
use support::guest::FakeGuest;
use support::namespace::Namespace;
use support::process::Dataplane;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status};

const EDGE: &str = "edge.host_01d39zy06fgsctvn4t2v9pkhfz.roost.internal";
const EDGE_URI: &str = "roost://host/host_01d39zy06fgsctvn4t2v9pkhfz/edge";

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn tls(fleet: &Fleet, client: Option<&Leaf>) -> ClientTlsConfig {
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&fleet.root_pem)).domain_name(EDGE);
    match client {
        Some(leaf) => tls.identity(Identity::from_pem(&leaf.certificate_pem, &leaf.key_pem)),
        None => tls,
    }
}

async fn status(address: SocketAddr, tls: ClientTlsConfig, sandbox: &str) -> Result<(), Status> {
    let endpoint = Endpoint::from_shared(format!("https://{address}")).unwrap().tls_config(tls).unwrap();
    let channel: Channel = endpoint.connect_lazy();
    let mut request = Request::new(StatusRequest {});
    request.metadata_mut().insert(SANDBOX_METADATA, sandbox.parse().unwrap());
    let mut gateway = GatewayClient::new(channel);
    let answer = gateway.status(request);
    let answer = tokio::time::timeout(Duration::from_secs(10), answer).await.expect("an answer");
    answer.map(|_| ())
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_scheduler_is_served_and_only_once_the_host_has_joined() {
    let address = free_address();
    let process = Dataplane::start("edge", &format!("[gateway]\nlisten = \"{address}\"\n"));
    let namespace = Namespace::new();
    let guest = FakeGuest::default();
    guest.serve(namespace.listen(GUEST_RPC_PORT));
    let (mut agent, _) = Agent::connect(&process.control).await;
    let (execution, sandbox) = (agent::execution(), agent::sandbox());
    agent.call(agent::attach(execution, sandbox, 1), namespace.dial_sockets(8)).await;
    let reply = agent.call(agent::claim(execution, "token", Duration::from_secs(10)), vec![]).await;
    assert!(matches!(reply, Reply::Claimed(_)), "{reply:?}");

    let fleet = Fleet::new();
    let scheduler = fleet.leaf(&["scheduler.roost.internal"], Some("roost://scheduler"));
    let sandbox = sandbox.to_string();
    let early = status(address, tls(&fleet, Some(&scheduler)), &sandbox).await;
    assert!(early.is_err(), "no certificate yet");

    // As the agent does after joining: the answer to the process's own request, beside it.
    let directory = process.directory().join("state");
    let request = std::fs::read_to_string(directory.join("edge.csr")).unwrap();
    let certificate = fleet.sign(&request, &[EDGE], Some(EDGE_URI));
    std::fs::write(directory.join("edge.pem"), certificate).unwrap();
    std::fs::write(directory.join("roots.pem"), &fleet.root_pem).unwrap();
    eventually("the certificate is loaded", || async {
        status(address, tls(&fleet, Some(&scheduler)), &sandbox).await.ok()
    })
    .await;

    let other = agent::sandbox().to_string();
    let absent = status(address, tls(&fleet, Some(&scheduler)), &other).await.unwrap_err();
    assert_eq!(absent.code(), Code::NotFound);
    let nameless = status(address, tls(&fleet, Some(&scheduler)), "nonsense").await.unwrap_err();
    assert_eq!(nameless.code(), Code::InvalidArgument);

    let stranger = Fleet::new();
    for (who, client) in [
        ("another host's agent", fleet.leaf(&[], Some("roost://host/host_01d39zy06fgsctvn4t2v9pkhfz/agent"))),
        ("this host's egress", fleet.leaf(&[], Some("roost://host/host_01d39zy06fgsctvn4t2v9pkhfz/egress"))),
        ("no identity", fleet.leaf(&["scheduler.roost.internal"], None)),
        ("a longer name", fleet.leaf(&[], Some("roost://scheduler/x"))),
        ("a scheduler of another fleet", stranger.leaf(&[], Some("roost://scheduler"))),
    ] {
        let refused = status(address, tls(&fleet, Some(&client)), &sandbox).await;
        assert!(refused.is_err(), "{who} was served");
    }
    assert!(status(address, tls(&fleet, None), &sandbox).await.is_err(), "no certificate was served");
    // After all of these the scheduler still is.
    status(address, tls(&fleet, Some(&scheduler)), &sandbox).await.unwrap();
}
