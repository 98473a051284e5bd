//! Three namespaces: the guest's, the sandbox's (a veth stands in for the tap, same rules), and the internet.
//!
//! The calling thread becomes the internet's: `PUBLIC` is an address of its loopback. All end with the
//! process.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::gettid;
use socket2::{Domain, Protocol, Socket, Type};

use super::authority::Root;
use super::guest::Guest;

/// Where every public name of the tests is.
pub(crate) const PUBLIC: Ipv4Addr = Ipv4Addr::new(93, 184, 216, 34);

const RULES: &str = include_str!("../../../../src/host/seal.nft");

pub(crate) struct World {
    sandbox: File,
    guest: tokio::runtime::Handle,
}

impl World {
    pub(crate) fn build() -> Self {
        enter_fresh();
        ip("address add 93.184.216.34/32 dev lo");
        Self::beside()
    }

    /// Another guest with a sandbox of its own, before the same internet.
    pub(crate) fn beside() -> Self {
        let (guest_tid, guest_tids) = mpsc::channel();
        let (moved, is_moved) = mpsc::channel();
        let (guest, guests) = mpsc::channel();
        std::thread::spawn(move || {
            enter_fresh();
            guest_tid.send(gettid()).unwrap();
            is_moved.recv().unwrap();
            ip("link set eth0 address 02:00:00:00:00:02");
            ip("address add 10.0.0.2/30 dev eth0");
            ip("link set eth0 up");
            ip("route add default via 10.0.0.1");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            guest.send(runtime.handle().clone()).unwrap();
            runtime.block_on(std::future::pending::<()>());
        });
        let tid = guest_tids.recv().unwrap();
        let sandbox = std::thread::spawn(move || build_sandbox(tid)).join().unwrap();
        moved.send(()).unwrap();
        Self { sandbox, guest: guests.recv().unwrap() }
    }

    pub(crate) fn guest(&self, root: Root) -> Guest {
        Guest::new(self.guest.clone(), root)
    }

    /// What the agent hands over: listener, DNS socket, dns.map.
    pub(crate) fn descriptors(&self, dns_map: &Path) -> Vec<OwnedFd> {
        let namespace = self.sandbox.try_clone().unwrap();
        let map = OpenOptions::new().read(true).append(true).create(true).open(dns_map).unwrap();
        let sockets = std::thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            let listener = transparent(Type::STREAM, Protocol::TCP, 18080);
            listener.listen(128).unwrap();
            let dns = transparent(Type::DGRAM, Protocol::UDP, 53);
            // A socket that brings more control messages than are asked for must do as well.
            setsockopt(&dns, sockopt::Ipv4PacketInfo, &true).unwrap();
            [listener.into(), dns.into()]
        });
        let [listener, dns]: [OwnedFd; 2] = sockets.join().unwrap();
        vec![listener, dns, map.into()]
    }
}

fn transparent(kind: Type, protocol: Protocol, port: u16) -> Socket {
    let socket = Socket::new(Domain::IPV4, kind, Some(protocol)).unwrap();
    socket.set_ip_transparent_v4(true).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into()).unwrap();
    socket
}

fn build_sandbox(guest: nix::unistd::Pid) -> File {
    enter_fresh();
    ip("link add tap0 type veth peer name eth0");
    ip(&format!("link set eth0 netns {guest}"));
    ip("link set tap0 address 02:00:00:00:00:01");
    ip("address add 10.0.0.1/30 dev tap0");
    ip("link set tap0 up");
    ip("rule add fwmark 1 lookup 100");
    ip("route add local 0.0.0.0/0 dev lo table 100");
    let mut nft = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("`nft` (package nftables)");
    nft.stdin.take().unwrap().write_all(RULES.as_bytes()).unwrap();
    assert!(nft.wait().unwrap().success(), "nft");
    File::open("/proc/thread-self/ns/net").unwrap()
}

fn enter_fresh() {
    unshare(CloneFlags::CLONE_NEWNET).expect("these tests make network namespaces: run them as root");
    ip("link set lo up");
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().expect("`ip` (package iproute2)");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}
