//! The socket's calling side, for the command line.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::{Answer, Command, Error, MESSAGE_BYTES_MAX};

const DEADLINE: Duration = Duration::from_secs(30);

/// Sends one command to the running scheduler and waits for its answer.
pub fn call(socket: &Path, command: &Command) -> Result<Answer, Error> {
    let path = socket.to_owned();
    let mut stream =
        UnixStream::connect(socket).map_err(|source| Error::NotRunning { path: path.clone(), source })?;
    let failed = |step| move |source| Error::Socket { step, path: socket.to_owned(), source };
    stream.set_read_timeout(Some(DEADLINE)).map_err(failed("set up"))?;
    stream.write_all(&serde_json::to_vec(command)?).map_err(failed("write to"))?;
    stream.shutdown(Shutdown::Write).map_err(failed("write to"))?;
    let mut answer = Vec::new();
    let limit = u64::try_from(MESSAGE_BYTES_MAX).unwrap_or(u64::MAX);
    stream.take(limit).read_to_end(&mut answer).map_err(failed("read from"))?;
    match serde_json::from_slice(&answer)? {
        Answer::Refused { why } => Err(Error::Refused(why)),
        answer => Ok(answer),
    }
}
