//! One prost message and its descriptors per SOCK_SEQPACKET packet: the framing between agent and data plane.
//!
//! Owns sending, receiving and the limits (64 KiB, 32 descriptors). A packet that is truncated, too large or
//! malformed is an error and the connection is of no further use: a peer that lost half a message has also lost
//! the identity of the descriptors in it. Knows no message of the contract; must not retry or reconnect.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use prost::Message;
use tokio_seqpacket::ancillary::{AncillaryMessageWriter, OwnedAncillaryMessage};
use tokio_seqpacket::{UnixSeqpacket, UnixSeqpacketListener};

/// The largest encoded message of a packet.
pub const MESSAGE_MAX_BYTES: usize = 64 * 1024;
/// The most descriptors one packet carries.
pub const DESCRIPTORS_MAX: usize = 32;

// Room for one SCM_RIGHTS header and the descriptors, with slack for alignment.
const ANCILLARY_BYTES: usize = 64 + DESCRIPTORS_MAX * size_of::<i32>();
// Connections waiting for accept; each listener serves one peer at a time.
const BACKLOG: i32 = 8;

/// What can go wrong with a packet connection.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("connect to {path}")]
    Connect { path: PathBuf, source: io::Error },
    #[error("listen on {path}")]
    Listen { path: PathBuf, source: io::Error },
    #[error("accept a connection")]
    Accept(#[source] io::Error),
    #[error("read the peer's credentials")]
    Credentials(#[source] io::Error),
    #[error("send a packet")]
    Send(#[source] io::Error),
    #[error("receive a packet")]
    Receive(#[source] io::Error),
    #[error("message of {bytes} bytes, {MESSAGE_MAX_BYTES} allowed")]
    TooLarge { bytes: usize },
    /// An empty packet cannot be told from the end of the connection.
    #[error("message without content")]
    Empty,
    #[error("packet with {count} descriptors, {DESCRIPTORS_MAX} allowed")]
    TooManyDescriptors { count: usize },
    #[error("packet truncated")]
    Truncated,
    #[error("malformed message")]
    Malformed(#[source] prost::DecodeError),
}

/// Who is at the other end, as the kernel recorded it when the connection was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerCredentials {
    pub uid: u32,
    pub gid: u32,
    pub pid: Option<i32>,
}

/// A connection that sends messages of type `S` and receives messages of type `R`.
#[derive(Debug)]
pub struct PacketSocket<S, R> {
    socket: UnixSeqpacket,
    messages: PhantomData<fn(S) -> R>,
}

/// Waits for peers of a [`PacketSocket`].
#[derive(Debug)]
pub struct PacketListener<S, R> {
    listener: UnixSeqpacketListener,
    messages: PhantomData<fn(S) -> R>,
}

impl<S: Message, R: Message + Default> PacketSocket<S, R> {
    fn new(socket: UnixSeqpacket) -> Self {
        Self { socket, messages: PhantomData }
    }

    /// Connects to the listener at `path`.
    pub async fn connect(path: &Path) -> Result<Self, Error> {
        let socket = UnixSeqpacket::connect(path)
            .await
            .map_err(|source| Error::Connect { path: path.to_owned(), source })?;
        Ok(Self::new(socket))
    }

    /// A connected pair, the second end with the directions exchanged.
    pub fn pair() -> Result<(Self, PacketSocket<R, S>), Error>
    where
        S: Default,
    {
        let (one, other) = UnixSeqpacket::pair().map_err(Error::Accept)?;
        Ok((Self::new(one), PacketSocket::new(other)))
    }

    /// The uid, gid and pid of the process that connected or listened at the other end.
    pub fn peer_credentials(&self) -> Result<PeerCredentials, Error> {
        let peer = self.socket.peer_cred().map_err(Error::Credentials)?;
        Ok(PeerCredentials { uid: peer.uid(), gid: peer.gid(), pid: peer.pid() })
    }

    /// Sends one message together with the descriptors it speaks of; the kernel duplicates them.
    pub async fn send(&self, message: &S, descriptors: &[BorrowedFd<'_>]) -> Result<(), Error> {
        let encoded = message.encode_to_vec();
        if encoded.is_empty() {
            return Err(Error::Empty);
        }
        if encoded.len() > MESSAGE_MAX_BYTES {
            return Err(Error::TooLarge { bytes: encoded.len() });
        }
        if descriptors.len() > DESCRIPTORS_MAX {
            return Err(Error::TooManyDescriptors { count: descriptors.len() });
        }
        let mut buffer = vec![0; ANCILLARY_BYTES];
        let mut ancillary = AncillaryMessageWriter::new(&mut buffer);
        if !descriptors.is_empty() {
            ancillary.add_fds(descriptors.iter().copied()).map_err(|e| Error::Send(e.into()))?;
        }
        self.socket.send_with_ancillary(&encoded, &mut ancillary).await.map_err(Error::Send)?;
        Ok(())
    }

    /// The next message and its descriptors (close-on-exec), or `None` when the peer has closed. Cancel safe.
    pub async fn recv(&self) -> Result<Option<(R, Vec<OwnedFd>)>, Error> {
        // Larger than allowed by one, so that a message that fills it is known to be too large.
        let mut data = vec![0; MESSAGE_MAX_BYTES + 1];
        let mut buffer = vec![0; ANCILLARY_BYTES];
        let (info, ancillary) =
            self.socket.recv_with_ancillary(&mut data, &mut buffer).await.map_err(Error::Receive)?;
        // Taken over first: whatever is refused below, the descriptors that came are closed.
        let mut descriptors = Vec::new();
        for message in ancillary.into_messages() {
            if let OwnedAncillaryMessage::FileDescriptors(received) = message {
                descriptors.extend(received);
            }
        }
        if info.truncated() || info.ancillary_truncated() {
            return Err(Error::Truncated);
        }
        if descriptors.len() > DESCRIPTORS_MAX {
            return Err(Error::TooManyDescriptors { count: descriptors.len() });
        }
        data.truncate(info.bytes_read());
        match data.len() {
            0 if descriptors.is_empty() => return Ok(None),
            0 => return Err(Error::Empty),
            bytes if bytes > MESSAGE_MAX_BYTES => return Err(Error::TooLarge { bytes }),
            _ => {}
        }
        let message = R::decode(Bytes::from(data)).map_err(Error::Malformed)?;
        Ok(Some((message, descriptors)))
    }
}

/// Listens at `path`, replacing a socket left there by a former process, with the file mode `mode`.
///
/// The directory must be the caller's own: whoever may write to it could take the place of the listener.
pub fn listen<S: Message, R: Message + Default>(
    path: &Path,
    mode: u32,
) -> Result<PacketListener<S, R>, Error> {
    let error = |source| Error::Listen { path: path.to_owned(), source };
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(error(e)),
        _ => {}
    }
    let listener = UnixSeqpacketListener::bind_with_backlog(path, BACKLOG).map_err(error)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(error)?;
    Ok(PacketListener { listener, messages: PhantomData })
}

impl<S: Message, R: Message + Default> PacketListener<S, R> {
    /// The next connection.
    pub async fn accept(&mut self) -> Result<PacketSocket<S, R>, Error> {
        self.listener.accept().await.map(PacketSocket::new).map_err(Error::Accept)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsFd;

    use super::*;

    #[derive(Clone, PartialEq, prost::Message)]
    struct Parcel {
        #[prost(bytes = "bytes", tag = "1")]
        content: Bytes,
    }

    fn parcel(bytes: usize) -> Parcel {
        Parcel { content: Bytes::from(vec![7; bytes]) }
    }

    fn pair() -> (PacketSocket<Parcel, Parcel>, PacketSocket<Parcel, Parcel>) {
        PacketSocket::pair().unwrap()
    }

    #[tokio::test]
    async fn a_descriptor_arrives_with_its_message_and_works() {
        let (near, far) = pair();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"content").unwrap();
        near.send(&parcel(3), &[file.as_fd()]).await.unwrap();
        let (message, mut descriptors) = far.recv().await.unwrap().unwrap();
        assert_eq!(message, parcel(3));
        let mut received = std::fs::File::from(descriptors.pop().unwrap());
        assert!(descriptors.is_empty());
        let mut text = String::new();
        received.rewind().unwrap();
        received.read_to_string(&mut text).unwrap();
        assert_eq!(text, "content");
    }

    #[tokio::test]
    async fn the_most_descriptors_and_the_largest_message_pass_and_no_more() {
        let (near, far) = pair();
        let file = tempfile::tempfile().unwrap();
        let most = vec![file.as_fd(); DESCRIPTORS_MAX];
        // Four bytes of prost's own: tag and a three-byte length.
        near.send(&parcel(MESSAGE_MAX_BYTES - 4), &most).await.unwrap();
        let (message, descriptors) = far.recv().await.unwrap().unwrap();
        assert_eq!((message.content.len(), descriptors.len()), (MESSAGE_MAX_BYTES - 4, DESCRIPTORS_MAX));

        let many = vec![file.as_fd(); DESCRIPTORS_MAX + 1];
        assert!(matches!(near.send(&parcel(1), &many).await, Err(Error::TooManyDescriptors { count: 33 })));
        let large = near.send(&parcel(MESSAGE_MAX_BYTES), &[]).await;
        assert!(matches!(large, Err(Error::TooLarge { .. })));
        assert!(matches!(near.send(&Parcel::default(), &[]).await, Err(Error::Empty)));
    }

    #[tokio::test]
    async fn what_a_peer_sends_beyond_the_limits_is_an_error() {
        let (raw, far) = UnixSeqpacket::pair().unwrap();
        let far = PacketSocket::<Parcel, Parcel>::new(far);
        raw.send(&vec![0; MESSAGE_MAX_BYTES + 1]).await.unwrap();
        assert!(matches!(far.recv().await, Err(Error::TooLarge { .. })));
        raw.send(&vec![0; 2 * MESSAGE_MAX_BYTES]).await.unwrap();
        assert!(matches!(far.recv().await, Err(Error::Truncated)));
        raw.send(&[0xff; 3]).await.unwrap();
        assert!(matches!(far.recv().await, Err(Error::Malformed(_))));

        let file = tempfile::tempfile().unwrap();
        let mut buffer = vec![0; 1024];
        let mut ancillary = AncillaryMessageWriter::new(&mut buffer);
        ancillary.add_fds(vec![file.as_fd(); 64]).unwrap();
        raw.send_with_ancillary(b"\x0a\x01x", &mut ancillary).await.unwrap();
        assert!(matches!(far.recv().await, Err(Error::Truncated | Error::TooManyDescriptors { .. })));
    }

    #[tokio::test]
    async fn a_listener_replaces_a_stale_socket_and_tells_who_connected() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        drop(listen::<Parcel, Parcel>(&path, 0o600).unwrap());
        let mut listener = listen::<Parcel, Parcel>(&path, 0o600).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let near = PacketSocket::<Parcel, Parcel>::connect(&path).await.unwrap();
        let far = listener.accept().await.unwrap();
        assert_eq!(far.peer_credentials().unwrap().pid, Some(std::process::id() as i32));
        drop(near);
        assert!(far.recv().await.unwrap().is_none());
    }
}
