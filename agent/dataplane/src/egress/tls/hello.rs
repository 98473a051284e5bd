//! The first message of a TLS connection, read without answering it: which server the guest believes it talks
//! to.

use std::io;

use bytes::{Bytes, BytesMut};
use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::egress::Host;

/// Longest greeting taken; with post-quantum keys and a session ticket they are about 2 KiB.
pub(crate) const MAX_HELLO_BYTES: usize = 16 * 1024;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("reading the TLS greeting")]
    Read(#[source] io::Error),
    #[error("the TLS greeting is longer than {MAX_HELLO_BYTES} bytes")]
    TooLong,
    #[error("the TLS greeting is not valid")]
    Malformed(#[source] rustls::Error),
    #[error("the server name in the TLS greeting is not valid")]
    ServerName(#[source] roost_domain::host_name::Error),
}

/// A greeting and the bytes it was read from.
#[derive(Debug)]
pub(crate) struct Hello {
    pub(crate) server_name: Option<Host>,
    pub(crate) bytes: Bytes,
}

/// Reads one greeting, in as many segments as it takes.
pub(crate) async fn read_hello<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Hello, Error> {
    let mut acceptor = Acceptor::default();
    let mut bytes = BytesMut::with_capacity(2048);
    loop {
        let begin = bytes.len();
        match stream.read_buf(&mut bytes).await {
            Ok(0) => return Err(Error::Read(io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => {}
            Err(error) => return Err(Error::Read(error)),
        }
        if bytes.len() > MAX_HELLO_BYTES {
            return Err(Error::TooLong);
        }
        let mut unread = &bytes[begin..];
        while !unread.is_empty() {
            acceptor.read_tls(&mut unread).map_err(Error::Read)?;
            match acceptor.accept() {
                Ok(Some(accepted)) => {
                    let server_name = accepted.client_hello().server_name().map(Host::parse);
                    let server_name = server_name.transpose().map_err(Error::ServerName)?;
                    return Ok(Hello { server_name, bytes: bytes.freeze() });
                }
                Ok(None) => {}
                Err((error, _)) => return Err(Error::Malformed(error)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use rustls::{ClientConfig, ClientConnection, RootCertStore};
    use rustls_pki_types::ServerName;
    use tokio::io::AsyncWriteExt;

    use super::*;

    fn hello(server_name: &str) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder =
            ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
        let name = ServerName::try_from(server_name.to_owned()).unwrap();
        let mut connection = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        connection.write_tls(&mut bytes).unwrap();
        bytes
    }

    /// What is read of these segments, each a read of its own; the guest closes after the last.
    fn read(segments: Vec<Vec<u8>>) -> Result<Hello, Error> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (mut guest, mut proxy) = tokio::io::duplex(64 * 1024);
            let write = async move {
                for segment in segments {
                    guest.write_all(&segment).await.unwrap();
                    tokio::task::yield_now().await;
                }
            };
            tokio::join!(write, read_hello(&mut proxy)).1
        })
    }

    fn cut(bytes: &[u8], sizes: &[usize]) -> Vec<Vec<u8>> {
        let (mut segments, mut rest) = (Vec::new(), bytes);
        for size in sizes.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (segment, after) = rest.split_at((*size).min(rest.len()));
            segments.push(segment.to_vec());
            rest = after;
        }
        segments
    }

    #[test]
    fn c3_an_address_is_no_server_name() {
        assert_eq!(read(vec![hello("192.0.2.1")]).unwrap().server_name, None);
    }

    #[test]
    fn d20_a_greeting_without_end_is_refused() {
        let record = [&b"\x16\x03\x01\x40\x00\x01\x00\xff\xff"[..], &[0; 0x4000 - 4]].concat();
        let endless = record.repeat(3);
        assert!(matches!(read(vec![endless]), Err(Error::TooLong | Error::Malformed(_))));
        let half = hello("api.example.com");
        assert!(matches!(read(vec![half[..half.len() / 2].to_vec()]), Err(Error::Read(_))));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn a_greeting_is_read_however_it_is_cut(
            name in "[a-z]{1,20}\\.[a-z]{2,10}", sizes in prop::collection::vec(1usize..700, 1..5),
        ) {
            let bytes = hello(&name);
            let read = read(cut(&bytes, &sizes)).unwrap();
            prop_assert_eq!(read.server_name, Some(Host::parse(&name).unwrap()));
            prop_assert!(bytes.starts_with(&read.bytes), "nothing is lost of what was read");
        }

        #[test]
        fn c18_no_bytes_break_the_reader(
            at in 0usize..300, change in any::<u8>(), sizes in prop::collection::vec(1usize..700, 1..3),
        ) {
            let mut bytes = hello("api.example.com");
            let at = at % bytes.len();
            bytes[at] ^= change;
            if let Ok(read) = read(cut(&bytes, &sizes)) {
                prop_assert!(read.server_name.is_none_or(|name| name.is_name()));
            }
        }
    }
}
