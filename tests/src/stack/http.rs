//! The daemons' own health pages, asked directly on loopback.
#![expect(clippy::disallowed_methods, reason = "asks the health ports of processes it started itself")]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(2);

/// The page of a health port, if it answers 200.
pub(super) fn ready(port: u16) -> Result<(), String> {
    let page = get(port, "/readyz").map_err(|error| error.to_string())?;
    match page.split_once("\r\n\r\n") {
        Some((head, _)) if head.starts_with("HTTP/1.1 200") || head.starts_with("HTTP/1.0 200") => Ok(()),
        Some((_, body)) => Err(body.trim().replace('\n', ", ")),
        None => Err("no answer".to_owned()),
    }
}

fn get(port: u16, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&(Ipv4Addr::LOCALHOST, port).into(), DEADLINE)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
    let mut page = String::new();
    stream.read_to_string(&mut page)?;
    Ok(page)
}
