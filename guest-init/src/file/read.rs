//! Streams a file out, from any offset, at the pace of the caller.

use std::fs::File;
use std::io::{Seek, SeekFrom};

use bytes::BytesMut;
use roost_proto::guest::file_chunk::Chunk;
use roost_proto::guest::{FileChunk, ReadFileRequest};
use tokio::sync::mpsc;
use tonic::Status;

use super::{Error, blocking, entry};
use crate::exec::output::MESSAGE_BYTES_MAX;
use crate::path::resolve;
use crate::sys;
use crate::user::Accounts;

/// Read at once, then sent as several messages: one hop to a thread for each would cost more than the reading.
const READ_BYTES: usize = 4 * MESSAGE_BYTES_MAX;

pub type ChunkSender = mpsc::Sender<Result<FileChunk, Status>>;

/// Opens the file and sends its head; `stream` sends the rest.
pub async fn open(request: ReadFileRequest) -> Result<(Reading, FileChunk), Error> {
    blocking(move || {
        let accounts = Accounts::read()?;
        let path = resolve(&request.path, &accounts.get_user(&request.user)?)?;
        let metadata = std::fs::metadata(&path).map_err(Error::at(&path))?;
        // A device or a pipe could block for ever or never end.
        if !metadata.is_file() {
            return Err(Error::NotRegular(path));
        }
        let mut file = File::open(&path).map_err(Error::at(&path))?;
        file.seek(SeekFrom::Start(request.offset)).map_err(Error::at(&path))?;
        let head = entry(std::path::Path::new(&path), &metadata, &accounts);
        let left = if request.limit_bytes == 0 { u64::MAX } else { request.limit_bytes };
        Ok((Reading { file, path, left }, FileChunk { chunk: Some(Chunk::Head(head)) }))
    })
    .await
}

#[derive(Debug)]
pub struct Reading {
    file: File,
    path: String,
    left: u64,
}

/// Sends the contents until the end, the limit, or until the caller leaves.
pub async fn stream(mut reading: Reading, sender: ChunkSender) {
    loop {
        let result = blocking(move || {
            let mut buffer = BytesMut::with_capacity(READ_BYTES);
            let wanted = usize::try_from(reading.left).unwrap_or(usize::MAX).min(READ_BYTES);
            while buffer.len() < wanted {
                let missing = wanted - buffer.len();
                let count =
                    sys::read_into(&reading.file, &mut buffer, missing).map_err(Error::at(&reading.path))?;
                if count == 0 {
                    break;
                }
            }
            reading.left -= buffer.len() as u64;
            Ok((reading, buffer.freeze()))
        })
        .await;
        let mut bytes = match result {
            Ok((next, bytes)) => {
                reading = next;
                bytes
            }
            Err(error) => return drop(sender.send(Err(error.into())).await),
        };
        if bytes.is_empty() {
            return;
        }
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(MESSAGE_BYTES_MAX));
            if sender.send(Ok(FileChunk { chunk: Some(Chunk::Data(piece)) })).await.is_err() {
                return;
            }
        }
    }
}
