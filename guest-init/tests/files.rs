//! Files, directories and watches.

mod harness;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use harness::{Client, Server, eventually};
use roost_proto::guest::file_chunk::Chunk;
use roost_proto::guest::file_entry::Kind;
use roost_proto::guest::watch_event::Kind as Change;
use roost_proto::guest::write_file_input::Input;
use roost_proto::guest::{
    FileEntry, ListDirectoryRequest, MakeDirectoryRequest, MovePathRequest, ReadFileRequest,
    RemovePathRequest, StatFileRequest, WatchEvent, WatchRequest, WriteFileHead, WriteFileInput,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

fn path(directory: &Path, name: &str) -> String {
    directory.join(name).to_string_lossy().into_owned()
}

fn head(path: &str) -> WriteFileHead {
    WriteFileHead { path: path.into(), user: "root".into(), ..WriteFileHead::default() }
}

fn messages(head: WriteFileHead, contents: &[u8]) -> Vec<WriteFileInput> {
    let data = contents.chunks(64 << 10).map(|piece| Input::Data(piece.to_vec().into()));
    std::iter::once(Input::Head(head))
        .chain(data)
        .map(|input| WriteFileInput { input: Some(input) })
        .collect()
}

async fn write(client: &mut Client, head: WriteFileHead, contents: &[u8]) -> Result<FileEntry, Status> {
    let messages = messages(head, contents);
    client.write_file(tokio_stream::iter(messages)).await.map(|reply| reply.into_inner())
}

async fn read(client: &mut Client, request: ReadFileRequest) -> Result<(FileEntry, Vec<u8>), Status> {
    let mut stream = client.read_file(request).await?.into_inner();
    let Some(Chunk::Head(entry)) = stream.message().await?.and_then(|message| message.chunk) else {
        panic!("the head comes first");
    };
    let mut contents = Vec::new();
    while let Some(message) = stream.message().await? {
        match message.chunk {
            Some(Chunk::Data(bytes)) if bytes.len() <= 64 << 10 => contents.extend_from_slice(&bytes),
            other => panic!("not a chunk of at most 64 KiB: {other:?}"),
        }
    }
    Ok((entry, contents))
}

fn code<T: std::fmt::Debug>(result: Result<T, Status>) -> Code {
    result.expect_err("refused").code()
}

#[tokio::test]
async fn a_file_comes_back_as_it_was_sent() {
    let (_server, mut client) = Server::claimed().await;
    let directory = tempfile::tempdir().expect("tempdir");
    let name = path(directory.path(), "a/b/file");
    let contents: Vec<u8> = (0..1_000_003).map(|n| (n % 253) as u8).collect();
    let head = WriteFileHead {
        mode: 0o750,
        user: "nobody".into(),
        make_parents: true,
        size_bytes: contents.len() as u64,
        modified_us: 1_600_000_000_123_456,
        ..head(&name)
    };
    let entry = write(&mut client, head, &contents).await.expect("written");
    assert_eq!((entry.path.as_str(), entry.kind(), entry.size_bytes), (name.as_str(), Kind::File, 1_000_003));
    assert_eq!(
        (entry.mode, entry.owner.as_str(), entry.modified_us),
        (0o750, "nobody", 1_600_000_000_123_456)
    );
    let parent = std::fs::metadata(directory.path().join("a/b")).expect("made");
    assert_eq!(
        parent.uid(),
        std::fs::metadata(&name).expect("made").uid(),
        "new directories are the user's too"
    );

    let request = |offset, limit_bytes| ReadFileRequest {
        path: name.clone(),
        offset,
        limit_bytes,
        user: String::new(),
    };
    let (entry, read_back) = read(&mut client, request(0, 0)).await.expect("read");
    assert_eq!((entry.size_bytes, entry.mode), (1_000_003, 0o750));
    assert!(read_back == contents);
    assert!(read(&mut client, request(999_000, 500)).await.expect("read").1 == contents[999_000..999_500]);
    assert!(read(&mut client, request(2_000_000, 0)).await.expect("read").1.is_empty());
}

#[tokio::test]
async fn a_file_that_did_not_come_whole_leaves_nothing() {
    let (_server, mut client) = Server::claimed().await;
    let directory = tempfile::tempdir().expect("tempdir");
    let name = path(directory.path(), "file");
    std::fs::write(&name, "before").expect("write");
    let announced = |size_bytes| WriteFileHead { size_bytes, ..head(&name) };
    assert_eq!(code(write(&mut client, announced(10), b"short").await), Code::InvalidArgument);
    assert_eq!(code(write(&mut client, announced(3), b"long!").await), Code::InvalidArgument);

    // A caller that goes away in the middle.
    let (sender, receiver) = mpsc::channel(4);
    for message in messages(head(&name), b"half") {
        sender.send(message).await.expect("sent");
    }
    let mut other = client.clone();
    let call = tokio::spawn(async move { other.write_file(ReceiverStream::new(receiver)).await });
    let entries = || std::fs::read_dir(directory.path()).expect("readable").count();
    eventually("the temporary file is there", || entries() == 2).await;
    call.abort();
    eventually("the temporary file is gone", || entries() == 1).await;
    assert_eq!(std::fs::read_to_string(&name).expect("readable"), "before");
}

/// Whoever reads while files are written, wholly or broken off, sees one of the whole ones.
#[tokio::test]
async fn a_reader_never_sees_half_a_file() {
    let (_server, mut client) = Server::claimed().await;
    let directory = tempfile::tempdir().expect("tempdir");
    let name = path(directory.path(), "file");
    let whole = |letter: u8| vec![letter; 300_000];
    write(&mut client, head(&name), &whole(b'a')).await.expect("written");
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let reader = {
        let (stop, name) = (stop.clone(), name.clone());
        std::thread::spawn(move || {
            let mut seen = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let contents = std::fs::read(&name).expect("always there");
                let first = contents.first().copied().expect("never empty");
                assert!(contents.len() == 300_000 && contents.iter().all(|byte| *byte == first));
                assert_ne!(first, b'x', "what was broken off");
                seen += 1;
            }
            seen
        })
    };
    for letter in b'b'..=b'k' {
        // One that is cut after its head and three pieces, then a whole one.
        let (sender, receiver) = mpsc::channel(8);
        for message in messages(head(&name), &whole(b'x')).into_iter().take(4) {
            sender.send(message).await.expect("sent");
        }
        let mut other = client.clone();
        let cut = tokio::spawn(async move { other.write_file(ReceiverStream::new(receiver)).await });
        let entries = || std::fs::read_dir(directory.path()).expect("readable").count();
        eventually("the temporary file is there", || entries() == 2).await;
        cut.abort();
        assert!(cut.await.expect_err("broken off").is_cancelled());
        // Only now may the stream of its messages end: an end in order is a whole file.
        drop(sender);
        write(&mut client, head(&name), &whole(letter)).await.expect("written");
        assert_eq!(std::fs::read(&name).expect("readable")[0], letter);
        eventually("the temporary file is gone", || entries() == 1).await;
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(reader.join().expect("only whole files") > 0);
}

#[tokio::test]
async fn rewriting_keeps_what_the_file_is() {
    let (_server, mut client) = Server::claimed().await;
    let directory = tempfile::tempdir().expect("tempdir");
    let (name, link) = (path(directory.path(), "file"), path(directory.path(), "link"));
    std::fs::write(&name, "before").expect("write");
    std::fs::set_permissions(&name, std::fs::Permissions::from_mode(0o700)).expect("chmod");
    std::os::unix::fs::chown(&name, Some(65_534), Some(65_534)).expect("chown");
    std::os::unix::fs::symlink("file", &link).expect("symlink");
    write(&mut client, head(&link), b"after").await.expect("written");
    let metadata = std::fs::metadata(&name).expect("there");
    assert_eq!((metadata.mode() & 0o777, metadata.uid()), (0o700, 65_534));
    assert_eq!(std::fs::read_to_string(&name).expect("readable"), "after");
    assert!(std::fs::symlink_metadata(&link).expect("there").is_symlink());

    let stat = |follow| StatFileRequest { path: link.clone(), follow };
    let entry = client.stat_file(stat(false)).await.expect("stat").into_inner();
    assert_eq!((entry.kind(), entry.link_target.as_str()), (Kind::Symlink, "file"));
    assert_eq!(client.stat_file(stat(true)).await.expect("stat").into_inner().size_bytes, 5);
}

#[tokio::test]
async fn failures_of_the_file_system_have_their_codes() {
    let (_server, mut client) = Server::claimed().await;
    let directory = tempfile::tempdir().expect("tempdir");
    let missing = path(directory.path(), "no/such/file");
    let here = path(directory.path(), ".");
    let request = |path: &str| ReadFileRequest { path: path.into(), ..ReadFileRequest::default() };
    assert_eq!(code(read(&mut client, request(&missing)).await), Code::NotFound);
    assert_eq!(code(read(&mut client, request(&here)).await), Code::FailedPrecondition);
    assert_eq!(code(read(&mut client, request("/dev/zero")).await), Code::FailedPrecondition);
    assert_eq!(code(read(&mut client, request("")).await), Code::InvalidArgument);
    assert_eq!(code(write(&mut client, head(&missing), b"x").await), Code::NotFound);
    assert_eq!(code(write(&mut client, head("/dev/null"), b"x").await), Code::FailedPrecondition);
    let unknown = WriteFileHead { user: "no-such-user".into(), ..head(&missing) };
    assert_eq!(code(write(&mut client, unknown, b"x").await), Code::InvalidArgument);
    let stat = StatFileRequest { path: missing, follow: true };
    assert_eq!(code(client.stat_file(stat).await), Code::NotFound);
}

#[tokio::test]
async fn directories_are_listed_by_level_and_cut_at_the_limit() {
    let (_server, mut client) = Server::claimed().await;
    let directory = tempfile::tempdir().expect("tempdir");
    let root = directory.path().join("root");
    std::fs::create_dir_all(root.join("b/deep/deeper")).expect("mkdir");
    for name in ["c", "a", "b/x", "b/deep/y"] {
        std::fs::write(root.join(name), name).expect("write");
    }
    let request = |depth| ListDirectoryRequest { path: root.to_string_lossy().into_owned(), depth };
    let mut names = async |depth| {
        let reply = client.list_directory(request(depth)).await.expect("listed").into_inner();
        assert!(!reply.truncated);
        let relative = |entry: &FileEntry| {
            Path::new(&entry.path).strip_prefix(&root).expect("below").to_string_lossy().into_owned()
        };
        reply.entries.iter().map(relative).collect::<Vec<_>>()
    };
    assert_eq!(names(0).await, ["a", "b", "c"]);
    assert_eq!(names(2).await, ["a", "b", "c", "b/deep", "b/x"]);
    assert_eq!(names(9).await, ["a", "b", "c", "b/deep", "b/x", "b/deep/deeper", "b/deep/y"]);

    for number in 0..10_001 {
        std::fs::write(root.join(format!("b/deep/{number}")), "").expect("write");
    }
    let reply = client.list_directory(request(9)).await.expect("listed").into_inner();
    assert_eq!((reply.entries.len(), reply.truncated), (10_000, true));
}

#[tokio::test]
async fn directories_are_made_moved_and_removed() {
    let (_server, mut client) = Server::claimed().await;
    let directory = tempfile::tempdir().expect("tempdir");
    let at = |name: &str| path(directory.path(), name);
    let make = |name: &str, parents| MakeDirectoryRequest {
        path: at(name),
        parents,
        mode: 0o700,
        user: "nobody".into(),
    };
    assert_eq!(code(client.make_directory(make("a/b", false)).await), Code::NotFound);
    let entry = client.make_directory(make("a/b", true)).await.expect("made").into_inner();
    assert_eq!((entry.kind(), entry.mode, entry.owner.as_str()), (Kind::Directory, 0o700, "nobody"));
    client.make_directory(make("a/b", true)).await.expect("with parents it is repeatable");
    assert_eq!(code(client.make_directory(make("a/b", false)).await), Code::AlreadyExists);

    let shift = |from: &str, to: &str, overwrite| MovePathRequest { from: at(from), to: at(to), overwrite };
    std::fs::write(at("one"), "1").expect("write");
    std::fs::write(at("two"), "2").expect("write");
    assert_eq!(code(client.move_path(shift("one", "two", false)).await), Code::AlreadyExists);
    client.move_path(shift("one", "two", true)).await.expect("moved");
    assert_eq!(std::fs::read_to_string(at("two")).expect("readable"), "1");
    client.move_path(shift("two", "a/b/three", false)).await.expect("moved");

    let remove = |name: &str, recursive| RemovePathRequest { path: at(name), recursive };
    assert_eq!(code(client.remove_path(remove("a", false)).await), Code::FailedPrecondition);
    client.remove_path(remove("a", true)).await.expect("removed");
    assert_eq!(code(client.remove_path(remove("a", true)).await), Code::NotFound);
}

async fn next(stream: &mut Streaming<WatchEvent>) -> WatchEvent {
    let next = tokio::time::timeout(harness::PATIENCE, stream.message());
    next.await.expect("in time").expect("watching").expect("an event")
}

/// Skips events until this one.
async fn expect(stream: &mut Streaming<WatchEvent>, kind: Change, path: &str) -> WatchEvent {
    loop {
        let event = next(stream).await;
        if event.kind() == kind && event.path == path {
            return event;
        }
    }
}

#[tokio::test]
async fn changes_are_told_wherever_they_happen() {
    let (_server, mut client) = Server::claimed().await;
    let directory = tempfile::tempdir().expect("tempdir");
    let at = |name: &str| path(directory.path(), name);
    std::fs::create_dir(at("old")).expect("mkdir");
    let request = WatchRequest { path: directory.path().to_string_lossy().into_owned(), recursive: true };
    let mut stream = client.watch(request).await.expect("watching").into_inner();
    assert_eq!(next(&mut stream).await.kind(), Change::Ready);

    std::fs::write(at("file"), "1").expect("write");
    expect(&mut stream, Change::Created, &at("file")).await;
    expect(&mut stream, Change::Modified, &at("file")).await;
    std::fs::write(at("old/inner"), "1").expect("write");
    expect(&mut stream, Change::Created, &at("old/inner")).await;

    std::fs::rename(at("old"), at("new")).expect("rename");
    let moved = expect(&mut stream, Change::Moved, &at("new")).await;
    assert_eq!((moved.old_path, moved.is_directory), (at("old"), true));
    std::fs::write(at("new/inner"), "2").expect("write");
    expect(&mut stream, Change::Modified, &at("new/inner")).await;

    // Everything of a tree that appears at once is told, and later changes deep in it too.
    std::fs::create_dir_all(at("x/y/z")).expect("mkdir");
    std::fs::write(at("x/y/z/deep"), "1").expect("write");
    expect(&mut stream, Change::Created, &at("x/y/z/deep")).await;
    std::fs::remove_file(at("x/y/z/deep")).expect("remove");
    expect(&mut stream, Change::Removed, &at("x/y/z/deep")).await;

    // A directory that leaves is gone, and what happens to it elsewhere is not told.
    let elsewhere =
        tempfile::tempdir_in(directory.path().parent().expect("below something")).expect("tempdir");
    std::fs::rename(at("new"), elsewhere.path().join("new")).expect("rename");
    assert!(expect(&mut stream, Change::Removed, &at("new")).await.is_directory);
    std::fs::write(elsewhere.path().join("new/inner"), "3").expect("write");
    std::fs::remove_file(at("file")).expect("remove");
    assert_eq!((next(&mut stream).await.path), at("file"));
}

#[tokio::test]
async fn watches_are_limited_and_given_back() {
    let (server, mut client) = Server::claimed().await;
    let directory = tempfile::tempdir().expect("tempdir");
    let request = || WatchRequest { path: directory.path().to_string_lossy().into_owned(), recursive: false };
    let mut streams = Vec::new();
    let refused = loop {
        match client.watch(request()).await {
            Ok(stream) => streams.push(stream),
            Err(status) => break status,
        }
    };
    assert_eq!((refused.code(), streams.len()), (Code::ResourceExhausted, 32));
    streams.clear();
    let mut client = server.client(harness::TOKEN).await;
    for _ in 0..500 {
        if client.watch(request()).await.is_ok() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("a place is free again once a call ended");
}
