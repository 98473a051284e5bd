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
