//! The UDP socket of a guest's namespace: who asked, which server they meant, and answering as that server.
//!
//! The socket is bound to 127.0.0.1:53 in the namespace and transparent; packets to any server arrive on it.
//! The address the guest asked comes as a control message, and the answer leaves from it the same way.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::libc;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, sendmsg, setsockopt, sockopt,
};
use tokio::io::Interest;

/// One query as it came.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) bytes: usize,
    pub(crate) from: SocketAddrV4,
    /// The server the guest asked.
    pub(crate) asked: Ipv4Addr,
}

#[derive(Debug)]
pub(crate) struct DnsSocket(tokio::net::UdpSocket);

impl DnsSocket {
    pub(crate) fn new(descriptor: OwnedFd) -> io::Result<Self> {
        setsockopt(&descriptor, sockopt::Ipv4OrigDstAddr, &true)?;
        let socket = UdpSocket::from(descriptor);
        socket.set_nonblocking(true)?;
        Ok(Self(tokio::net::UdpSocket::from_std(socket)?))
    }

    /// Waits for a packet. Longer ones than the buffer, and ones whose server is unknown, are skipped.
    pub(crate) async fn receive(&self, buffer: &mut [u8]) -> io::Result<Received> {
        loop {
            let received = self.0.async_io(Interest::READABLE, || self.try_receive(buffer)).await?;
            if let Some(received) = received {
                return Ok(received);
            }
        }
    }

    fn try_receive(&self, buffer: &mut [u8]) -> io::Result<Option<Received>> {
        // Room for both messages a socket may be set to bring; with less, the kernel cuts off the one that is
        // needed.
        let mut control = nix::cmsg_space!(libc::sockaddr_in, libc::in_pktinfo);
        let mut slices = [IoSliceMut::new(buffer)];
        let flags = MsgFlags::MSG_DONTWAIT;
        let message = recvmsg::<SockaddrIn>(self.0.as_raw_fd(), &mut slices, Some(&mut control), flags)?;
        if message.flags.contains(MsgFlags::MSG_TRUNC) {
            return Ok(None);
        }
        let asked = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::Ipv4OrigDstAddr(address) => Some(SockaddrIn::from(address).ip()),
            _ => None,
        });
        let (Some(asked), Some(from)) = (asked, message.address) else {
            return Ok(None);
        };
        Ok(Some(Received { bytes: message.bytes, from: from.into(), asked }))
    }

    /// Answers as the server that was asked.
    pub(crate) async fn send(&self, answer: &[u8], query: &Received) -> io::Result<()> {
        let source = libc::in_pktinfo {
            ipi_ifindex: 0,
            ipi_spec_dst: libc::in_addr { s_addr: u32::from_ne_bytes(query.asked.octets()) },
            ipi_addr: libc::in_addr { s_addr: 0 },
        };
        let to = SockaddrIn::from(query.from);
        self.0
            .async_io(Interest::WRITABLE, || {
                let control = [ControlMessage::Ipv4PacketInfo(&source)];
                let flags = MsgFlags::MSG_DONTWAIT;
                sendmsg(self.0.as_raw_fd(), &[IoSlice::new(answer)], &control, flags, Some(&to))?;
                Ok(())
            })
            .await
    }
}
