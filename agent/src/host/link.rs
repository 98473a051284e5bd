//! Links, addresses, neighbours, routes and rules of a namespace, by rtnetlink.
//!
//! Every function must run on a thread inside the namespace (`Netns::run`): the netlink socket belongs to the
//! namespace it is made in. All are repeatable.

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use futures::TryStreamExt;
use rtnetlink::packet_core::ErrorMessage;
use rtnetlink::packet_route::neighbour::NeighbourState;
use rtnetlink::packet_route::route::{RouteScope, RouteType};
use rtnetlink::packet_route::rule::RuleAction;
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("opening a netlink socket")]
    Open(#[source] io::Error),
    #[error("{step} by netlink")]
    Step { step: &'static str, source: Box<rtnetlink::Error> },
    #[error("link {0} is not there")]
    Absent(&'static str),
}

fn step(step: &'static str) -> impl FnOnce(rtnetlink::Error) -> Error {
    move |source| Error::Step { step, source: Box::new(source) }
}

/// Another run has done it already.
fn unless_exists(result: Result<(), rtnetlink::Error>) -> Result<(), rtnetlink::Error> {
    match result {
        Err(rtnetlink::Error::NetlinkError(ErrorMessage { code: Some(code), .. }))
            if code.get() == -(nix::errno::Errno::EEXIST as i32) =>
        {
            Ok(())
        }
        other => other,
    }
}

/// Runs `work` with a netlink handle of the calling thread's namespace.
pub fn with_netlink<T>(work: impl AsyncFnOnce(&Handle) -> Result<T, Error>) -> Result<T, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(Error::Open)?;
    runtime.block_on(async {
        let (connection, handle, _messages) = rtnetlink::new_connection().map_err(Error::Open)?;
        let connection = tokio::spawn(connection);
        let result = work(&handle).await;
        drop(handle);
        connection.abort();
        result
    })
}

async fn index_of(handle: &Handle, name: &'static str) -> Result<u32, Error> {
    let found = handle.link().get().match_name(name.to_owned()).execute().try_next().await;
    found.map_err(step("looking up a link"))?.map(|link| link.header.index).ok_or(Error::Absent(name))
}

/// Brings `lo` up and makes every packet that carries `mark` local, whatever its destination.
pub async fn ensure_marked_is_local(handle: &Handle, mark: u32, table: u32) -> Result<(), Error> {
    let loopback = index_of(handle, "lo").await?;
    let up = LinkUnspec::new_with_index(loopback).up().build();
    handle.link().set(up).execute().await.map_err(step("bringing lo up"))?;

    let rule = handle.rule().add().v4().fw_mark(mark).table_id(table).action(RuleAction::ToTable);
    unless_exists(rule.execute().await).map_err(step("adding the rule for marked packets"))?;

    let route = RouteMessageBuilder::<Ipv4Addr>::new()
        .table_id(table)
        .kind(RouteType::Local)
        .scope(RouteScope::Host)
        .output_interface(loopback)
        .build();
    let added = handle.route().add(route).replace().execute().await;
    added.map_err(step("adding the local route for marked packets"))
}

/// Addresses of a point-to-point link to one guest.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    pub gateway: Ipv4Addr,
    pub gateway_mac: [u8; 6],
    pub prefix: u8,
    pub guest: Ipv4Addr,
    pub guest_mac: [u8; 6],
}

/// Gives a link its addresses, brings it up, and makes the guest a permanent neighbour: the first packet to it
/// needs no answer from it, and it can never claim to be somebody else.
pub async fn ensure_link(handle: &Handle, name: &'static str, peer: &Peer) -> Result<(), Error> {
    let index = index_of(handle, name).await?;
    let up = LinkUnspec::new_with_index(index).address(peer.gateway_mac.to_vec()).up().build();
    handle.link().set(up).execute().await.map_err(step("bringing the link up"))?;

    let address = handle.address().add(index, IpAddr::V4(peer.gateway), peer.prefix).replace();
    address.execute().await.map_err(step("adding the gateway's address"))?;

    let neighbour = handle
        .neighbours()
        .add(index, IpAddr::V4(peer.guest))
        .link_layer_address(&peer.guest_mac)
        .state(NeighbourState::Permanent)
        .replace();
    neighbour.execute().await.map_err(step("adding the guest as a permanent neighbour"))
}
