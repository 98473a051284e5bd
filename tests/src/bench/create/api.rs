//! The tenant API over one connection that is kept: a client whose own cost is next to nothing.
#![expect(clippy::disallowed_methods, reason = "asks the API of a stack it started itself")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use crate::stack::tenant::Tenant;

const DEADLINE: Duration = Duration::from_secs(100);

#[derive(Debug)]
pub(super) struct Api {
    stream: BufReader<TcpStream>,
    key: String,
}

impl Api {
    pub(super) fn connect(tenant: &Tenant, port: u16) -> anyhow::Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        Ok(Self { stream: BufReader::new(stream), key: tenant.key.clone() })
    }

    pub(super) fn post(&mut self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.call("POST", path, &body.to_string())
    }

    pub(super) fn get(&mut self, path: &str) -> anyhow::Result<Value> {
        self.call("GET", path, "")
    }

    /// The object under `data`; any status but 2xx is an error.
    fn call(&mut self, method: &str, path: &str, body: &str) -> anyhow::Result<Value> {
        let request = format!(
            "{method} /api/v1{path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            self.key,
            body.len()
        );
        self.stream.get_mut().write_all(request.as_bytes())?;
        let status = self.line()?;
        let mut length = None;
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = Some(value.trim().parse()?);
            }
        }
        let mut answer = vec![0; length.context("an answer without a length")?];
        self.stream.read_exact(&mut answer)?;
        if !status.starts_with("HTTP/1.1 2") {
            bail!("{method} {path} answered {status}: {}", String::from_utf8_lossy(&answer));
        }
        let mut whole: Value = serde_json::from_slice(&answer)?;
        Ok(whole.get_mut("data").map(Value::take).unwrap_or(whole))
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        ensure!(self.stream.read_line(&mut line)? > 0, "the API closed the connection");
        Ok(line.trim_end().to_owned())
    }
}
