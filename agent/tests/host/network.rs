//! The sealed network: what leaves a tap meets our sockets or nothing.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use roost_agent::host::{netns, seal, sockets, tap};

use crate::scratch::Scratch;

fn rules(netns: &netns::Netns) -> String {
    let list = || {
        let listed = roost_agent::host::tool::run("nft", &["list", "ruleset"], b"", Duration::from_secs(10));
        String::from_utf8(listed.expect("listed")).expect("UTF-8")
    };
    netns.run(list).expect("inside")
}

#[test]
fn a_namespace_is_made_found_listed_and_removed() {
    let scratch = Scratch::new("netns");
    let names = scratch.names(1);
    assert!(netns::find(&names.netns).expect("looked").is_none());
    netns::ensure(&names.netns).expect("made");
    netns::ensure(&names.netns).expect("made again");
    assert_eq!(netns::list(&scratch.instance).expect("listed"), [names.execution]);
    let inside = netns::find(&names.netns).expect("looked").expect("there");
    let links = || std::fs::read_to_string("/proc/thread-self/net/dev").expect("read").lines().count();
    assert_eq!(inside.run(links).expect("inside"), 3, "two lines of heading and lo");
    netns::remove(&names.netns).expect("removed");
    netns::remove(&names.netns).expect("removed again");
    assert_eq!(netns::list(&scratch.instance).expect("listed"), []);
}

#[test]
fn a_name_without_its_mount_is_repaired() {
    let scratch = Scratch::new("netnsfix");
    let names = scratch.names(1);
    netns::ensure(&names.netns).expect("made");
    netns::remove(&names.netns).expect("removed");
    std::fs::write(format!("{}/{}", netns::NETNS_DIR, names.netns), "").expect("written");
    netns::ensure(&names.netns).expect("repaired");
}

#[test]
fn sealing_again_changes_nothing() {
    let scratch = Scratch::new("seal");
    let netns = netns::ensure(&scratch.names(1).netns).expect("made");
    seal::ensure(&netns).expect("sealed");
    let first = rules(&netns);
    seal::ensure(&netns).expect("sealed again");
    assert_eq!(first, rules(&netns));
    assert!(first.contains("policy drop"), "{first}");
}

#[test]
fn e6_nothing_inside_can_reach_out() {
    let scratch = Scratch::new("noroute");
    let netns = netns::ensure(&scratch.names(1).netns).expect("made");
    seal::ensure(&netns).expect("sealed");
    let _tap = tap::open(&netns).expect("a tap");
    assert!(matches!(tap::open(&netns), Err(tap::Error::Busy)), "one VMM at a time");
    // A documentation address: refused for want of a route, before anything is sent.
    let dial = || {
        let target = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 80));
        #[expect(clippy::disallowed_methods, reason = "a test dials its own namespace")]
        TcpStream::connect_timeout(&target, Duration::from_secs(2)).map(|_| ()).map_err(|error| error.kind())
    };
    assert_eq!(netns.run(dial).expect("inside"), Err(ErrorKind::NetworkUnreachable));
    let ask = || {
        UdpSocket::bind("0.0.0.0:0")
            .and_then(|socket| socket.send_to(b"x", "192.0.2.1:53"))
            .map_err(|error| error.kind())
    };
    assert_eq!(netns.run(ask).expect("inside"), Err(ErrorKind::NetworkUnreachable));
    let six = || TcpListener::bind("[::1]:0").map(|_| ());
    netns.run(six).expect("inside").expect("::1 exists");
}

#[test]
fn a_second_set_of_sockets_is_made_as_easily() {
    let scratch = Scratch::new("sockets");
    let netns = netns::ensure(&scratch.names(1).netns).expect("made");
    seal::ensure(&netns).expect("sealed");
    let _tap = tap::open(&netns).expect("a tap");
    let listener = sockets::open_listener(&netns).expect("a listener");
    let dns = sockets::open_dns(&netns).expect("a DNS socket");
    let dialers = sockets::open_dial_sockets(&netns, 8).expect("dial sockets");
    assert_eq!(dialers.len(), 8);
    assert!(matches!(sockets::open_dial_sockets(&netns, 33), Err(sockets::Error::TooMany(33))));
    // What is handed on works outside: the listener has the address of the namespace's loopback.
    let listener = TcpListener::from(listener);
    assert_eq!(listener.local_addr().expect("bound"), SocketAddr::from((Ipv4Addr::LOCALHOST, 18080)));
    drop((listener, dns));
    sockets::open_listener(&netns).expect("a listener in its place");
}

/// A guest made of a second namespace: its `tap1`'s frames are copied to `tap0` of the first, by hand.
struct Wire {
    guest: netns::Netns,
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
    pumps: Vec<std::thread::JoinHandle<()>>,
}

impl Wire {
    fn new(scratch: &Scratch, gateway: OwnedFd) -> Self {
        let names = scratch.names(9);
        let guest = netns::ensure(&names.netns).expect("made");
        let tap = tap::open(&guest).expect("a tap");
        let script = "ip link set lo up; ip link set tap0 address 02:00:00:00:00:02; ip address flush dev tap0; \
                      ip address add 10.0.0.2/30 dev tap0; ip neigh flush dev tap0; \
                      ip neigh replace 10.0.0.1 lladdr 02:00:00:00:00:01 dev tap0; ip route add default via 10.0.0.1";
        let configure = || {
            roost_agent::host::tool::run("sh", &["-ec", script], b"", Duration::from_secs(10))
                .expect("configured")
        };
        guest.run(configure).expect("inside");
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let copy = |from: &OwnedFd, to: &OwnedFd| {
            let (mut from, mut to) = (
                std::fs::File::from(from.try_clone().expect("copied")),
                std::fs::File::from(to.try_clone().expect("copied")),
            );
            let stop = std::sync::Arc::clone(&stop);
            std::thread::spawn(move || {
                let mut frame = vec![0u8; 70_000];
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    match from.read(&mut frame) {
                        Ok(length) => drop(to.write(&frame[..length])),
                        Err(_) => std::thread::sleep(Duration::from_micros(200)),
                    }
                }
            })
        };
        let pumps = vec![copy(&tap, &gateway), copy(&gateway, &tap)];
        Self { guest, stop, pumps }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        for pump in self.pumps.drain(..) {
            let _ = pump.join();
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a test dials its own namespace")]
fn dial(target: SocketAddr) -> std::io::Result<TcpStream> {
    TcpStream::connect_timeout(&target, Duration::from_secs(5))
}

#[test]
fn e4_e9_e10_every_connection_of_a_guest_meets_the_listener() {
    let scratch = Scratch::new("tproxy");
    let netns = netns::ensure(&scratch.names(1).netns).expect("made");
    seal::ensure(&netns).expect("sealed");
    let tap = tap::open(&netns).expect("a tap");
    let listener = TcpListener::from(sockets::open_listener(&netns).expect("a listener"));
    listener.set_nonblocking(false).expect("set");
    let dns = UdpSocket::from(sockets::open_dns(&netns).expect("a DNS socket"));
    dns.set_nonblocking(false).expect("set");
    dns.set_read_timeout(Some(Duration::from_secs(5))).expect("set");
    let wire = Wire::new(&scratch, tap);

    // Also the gateway's own address, and ports nobody listens on.
    for target in ["203.0.113.7:443", "198.18.0.9:5432", "10.0.0.1:22", "192.0.2.1:53"] {
        let target: SocketAddr = target.parse().expect("an address");
        let mut guest = wire.guest.run(|| dial(target)).expect("inside").expect("connected");
        let (mut accepted, peer) = listener.accept().expect("accepted");
        assert_eq!(accepted.local_addr().expect("known"), target, "the address the guest wanted");
        assert_eq!(peer.ip(), Ipv4Addr::new(10, 0, 0, 2));
        accepted.write_all(b"hello").expect("written");
        let mut heard = [0u8; 5];
        guest.set_read_timeout(Some(Duration::from_secs(5))).expect("set");
        guest.read_exact(&mut heard).expect("answered");
        assert_eq!(&heard, b"hello");
    }

    let ask = || {
        let socket = UdpSocket::bind("10.0.0.2:0").expect("bound");
        socket.send_to(b"blocked", "203.0.113.7:443").expect("sent");
        socket.send_to(b"question", "203.0.113.53:53").expect("sent");
    };
    wire.guest.run(ask).expect("inside");
    let mut question = [0u8; 64];
    let (length, from) = dns.recv_from(&mut question).expect("heard");
    assert_eq!(&question[..length], b"question", "and not what went to another port");
    assert_eq!(from.ip(), Ipv4Addr::new(10, 0, 0, 2));

    // A forged sender is nobody.
    let forge = || {
        let add = ["-ec", "ip address add 10.9.9.9/32 dev tap0"];
        roost_agent::host::tool::run("sh", &add, b"", Duration::from_secs(10)).expect("added");
        let socket = UdpSocket::bind("10.9.9.9:0").expect("bound");
        socket.send_to(b"forged", "203.0.113.53:53").expect("sent");
        let honest = UdpSocket::bind("10.0.0.2:0").expect("bound");
        honest.send_to(b"honest", "203.0.113.53:53").expect("sent");
    };
    wire.guest.run(forge).expect("inside");
    let (length, _) = dns.recv_from(&mut question).expect("heard");
    assert_eq!(&question[..length], b"honest");

    // None of it is remembered: there is no table for a guest to fill. (No file: a kernel without such a table.)
    let remembered = || std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count");
    match netns.run(remembered).expect("inside") {
        Ok(count) => assert_eq!(count.trim(), "0", "tracked connections"),
        Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound, "{error}"),
    }
}

#[test]
fn a_dial_socket_reaches_the_guest_and_can_be_used_again() {
    let scratch = Scratch::new("dialin");
    let netns = netns::ensure(&scratch.names(1).netns).expect("made");
    seal::ensure(&netns).expect("sealed");
    let tap = tap::open(&netns).expect("a tap");
    let _listener = sockets::open_listener(&netns).expect("a listener");
    let dialer = sockets::open_dial_sockets(&netns, 1).expect("a dial socket").remove(0);
    let wire = Wire::new(&scratch, tap);
    let server = wire.guest.run(|| TcpListener::bind("10.0.0.2:1021")).expect("inside").expect("bound");
    let target: SocketAddr = "10.0.0.2:1021".parse().expect("an address");
    for round in 0..3 {
        let socket = socket2::Socket::from(dialer.try_clone().expect("copied"));
        socket.set_nonblocking(false).expect("set");
        #[expect(clippy::disallowed_methods, reason = "a test dials its own namespace")]
        socket.connect(&target.into()).unwrap_or_else(|error| panic!("round {round}: {error}"));
        let (accepted, peer) = server.accept().expect("accepted");
        assert_eq!(peer.ip(), Ipv4Addr::new(10, 0, 0, 1), "it comes from the gateway");
        assert!(socket.tcp_nodelay().expect("known"));
        drop(accepted);
        // Disconnects: the socket is as new.
        disconnect(&socket);
    }
}

/// `connect(AF_UNSPEC)`, which takes a socket back.
#[allow(unsafe_code)]
fn disconnect(socket: &socket2::Socket) {
    // SAFETY: an all-zero sockaddr is valid, is of family AF_UNSPEC, and outlives the call.
    let result = unsafe {
        let nobody: libc::sockaddr = std::mem::zeroed();
        libc::connect(
            socket.as_raw_fd(),
            &raw const nobody,
            std::mem::size_of::<libc::sockaddr>() as libc::socklen_t,
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}
