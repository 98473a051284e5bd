//! A network namespace in which the guest's address exists; gone with the last socket made in it.

use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::os::fd::OwnedFd;
use std::process::Command;

use nix::sched::{CloneFlags, unshare};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

pub(crate) const GUEST: [u8; 4] = [10, 0, 0, 2];

/// Runs work on a thread in a namespace of its own that lives as long as this.
pub(crate) struct Namespace {
    work: std::sync::mpsc::Sender<Box<dyn FnOnce() + Send>>,
}

impl Namespace {
    pub(crate) fn new() -> Self {
        let (work, queue) = std::sync::mpsc::channel::<Box<dyn FnOnce() + Send>>();
        let (ready, is_ready) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("these tests make network namespaces: run them as root");
            ip(&["link", "set", "lo", "up"]);
            ip(&["address", "add", "10.0.0.2/32", "dev", "lo"]);
            ready.send(()).unwrap();
            while let Ok(work) = queue.recv() {
                work();
            }
        });
        is_ready.recv().expect("a network namespace");
        Self { work }
    }

    pub(crate) fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, is_done) = std::sync::mpsc::channel();
        self.work.send(Box::new(move || done.send(work()).unwrap())).unwrap();
        is_done.recv().unwrap()
    }

    /// Unconnected sockets as the agent hands them over.
    pub(crate) fn dial_sockets(&self, count: usize) -> Vec<OwnedFd> {
        self.run(move || {
            let make = |_| {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
                socket.set_ip_transparent_v4(true).unwrap();
                socket.into()
            };
            (0..count).map(make).collect()
        })
    }

    /// A listener of the guest.
    pub(crate) fn listen(&self, port: u16) -> TcpListener {
        let listener = self.run(move || StdTcpListener::bind(SocketAddr::from((GUEST, port))).unwrap());
        listener.set_nonblocking(true).unwrap();
        TcpListener::from_std(listener).unwrap()
    }

    /// Connections of the guest's address that the kernel knows, by its own table.
    pub(crate) fn established(&self) -> usize {
        let output = self.run(|| Command::new("ss").args(["-Htn", "state", "established"]).output().unwrap());
        String::from_utf8(output.stdout).unwrap().lines().count()
    }
}

fn ip(arguments: &[&str]) {
    let status = Command::new("ip").args(arguments).status().expect("`ip` (package iproute2)");
    assert!(status.success(), "ip {arguments:?}");
}
