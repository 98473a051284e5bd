//! The socket's listening side.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use roost_daemon::shutdown::Shutdown;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::{Answer, Command, Error, MESSAGE_BYTES_MAX, Operator};

const CONNECTION_DEADLINE: Duration = Duration::from_secs(30);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Makes the socket, readable by its owner alone; a socket that a dead scheduler left behind is replaced.
pub fn bind(path: &Path) -> Result<UnixListener, Error> {
    let failed = |step| move |source| Error::Socket { step, path: path.to_owned(), source };
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).map_err(failed("make the directory of"))?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(about) if about.file_type().is_socket() => {
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                let source =
                    std::io::Error::new(std::io::ErrorKind::AddrInUse, "another scheduler listens there");
                return Err(failed("take")(source));
            }
            std::fs::remove_file(path).map_err(failed("replace"))?;
        }
        Ok(_) => {
            let source = std::io::Error::new(std::io::ErrorKind::AlreadyExists, "it is not a socket");
            return Err(failed("replace")(source));
        }
        Err(_) => {}
    }
    // Made under another name and renamed when it is private: nobody can connect before.
    let unfinished = path.with_extension("unfinished");
    let _ = std::fs::remove_file(&unfinished);
    let listener = UnixListener::bind(&unfinished).map_err(failed("make"))?;
    std::fs::set_permissions(&unfinished, std::fs::Permissions::from_mode(0o600))
        .map_err(failed("protect"))?;
    std::fs::rename(&unfinished, path).map_err(failed("place"))?;
    Ok(listener)
}

/// Answers commands until shutdown is requested.
pub async fn serve(listener: UnixListener, operator: Operator, shutdown: Shutdown) {
    loop {
        let accepted = tokio::select! {
            () = shutdown.requested() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let operator = operator.clone();
                tokio::spawn(async move {
                    // A client that breaks off or stalls concerns nobody else.
                    let _ = tokio::time::timeout(CONNECTION_DEADLINE, answer(stream, operator)).await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept an admin connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn answer(mut stream: UnixStream, operator: Operator) -> std::io::Result<()> {
    let mut request = Vec::new();
    let limit = u64::try_from(MESSAGE_BYTES_MAX).unwrap_or(u64::MAX);
    (&mut stream).take(limit).read_to_end(&mut request).await?;
    let outcome = match serde_json::from_slice::<Command>(&request) {
        Ok(command) => operator.run(command).await,
        Err(error) => Err(Error::Message(error)),
    };
    let answer =
        outcome.unwrap_or_else(|error| Answer::Refused { why: roost_daemon::telemetry::chain(&error) });
    stream.write_all(&serde_json::to_vec(&answer)?).await?;
    stream.shutdown().await
}
