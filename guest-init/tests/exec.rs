//! What running a process promises.

mod harness;

use std::time::{Duration, Instant};

use harness::{Client, Server, begin, collect, eventually, input, is_alive, run, shell, started};
use roost_init::exec::journal::Source;
use roost_init::exec::output::piece;
use roost_proto::guest::exec_input::Input;
use roost_proto::guest::{
    AttachRequest, ExecStart, ListProcessesRequest, SignalRequest, StatusRequest, TerminalSize,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

fn argv(arguments: &[&str]) -> ExecStart {
    ExecStart { argv: arguments.iter().map(ToString::to_string).collect(), shell: String::new(), ..shell("") }
}

#[tokio::test]
async fn the_call_ends_with_its_process_and_loses_nothing() {
    let (_server, mut client) = Server::claimed().await;
    let file = tempfile::NamedTempFile::new().expect("temporary file");
    let text = format!("seq 200000; (sleep 60 & echo $! > {})", file.path().display());
    let began = Instant::now();
    let ran = run(&mut client, shell(&text)).await;
    assert!(began.elapsed() < Duration::from_secs(10), "waited for the background: {:?}", began.elapsed());
    let expected: String = (1..=200_000).map(|n| format!("{n}\n")).collect();
    assert!(ran.out() == expected, "{} of {} bytes", ran.stdout.len(), expected.len());
    assert_eq!(ran.code(), 0);
    let sleeper = std::fs::read_to_string(file.path()).expect("readable");
    let sleeper: u32 = sleeper.trim().parse().expect("a pid");
    assert!(is_alive(sleeper), "what is in the background goes on");
    roost_init::sys::kill(sleeper, 9, false).expect("killed");
}

#[tokio::test]
async fn a_background_child_outlives_the_call_and_may_go_on_writing() {
    let (_server, mut client) = Server::claimed().await;
    let directory = tempfile::tempdir().expect("tempdir");
    let (go, done) = (directory.path().join("go"), directory.path().join("done"));
    let script = format!(
        "(while [ ! -e {go} ]; do sleep 0.02; done; head -c 300000 /dev/zero && echo > {done}) & echo started",
        go = go.display(),
        done = done.display()
    );
    let ran = run(&mut client, shell(&script)).await;
    assert_eq!((ran.out().as_str(), ran.code()), ("started\n", 0));
    assert!(!done.exists());
    std::fs::write(&go, "").expect("write");
    // More than a pipe holds: it would block or be killed if nobody read any more.
    eventually("the child finished writing", || done.exists()).await;
}

#[tokio::test]
async fn exits_are_told_as_a_shell_would() {
    let (_server, mut client) = Server::claimed().await;
    for (text, code, signal) in [
        ("exit 0", 0, 0),
        ("exit 3", 3, 0),
        ("kill -KILL $$", 137, 9),
        ("kill -TERM $$", 143, 15),
        // A real-time signal, which has no name everywhere.
        ("kill -40 $$", 168, 40),
    ] {
        let ran = run(&mut client, shell(text)).await;
        let exited = ran.exited.expect("exited");
        assert_eq!((exited.exit_code, exited.signal, exited.timed_out), (code, signal, false), "{text}");
    }
    let ran = run(&mut client, argv(&["no-such-program"])).await;
    assert_eq!(
        (ran.code(), String::from_utf8_lossy(&ran.stderr).as_ref()),
        (127, "no-such-program: not found\n")
    );
    assert_eq!(run(&mut client, argv(&["/etc/passwd"])).await.code(), 126);
    assert_eq!(run(&mut client, argv(&["sh", "-c", "exit $#", "a", "b c", ""])).await.code(), 2);
}

#[tokio::test]
async fn a_process_gets_the_user_the_directory_and_the_environment_it_is_given() {
    let inherited = inherited_descriptors();
    let (_server, mut client) = Server::claimed().await;
    let mut start =
        shell("id -un; id -Gn; pwd; echo $HOME $USER $FROM_GUEST $MORE; umask; ls /proc/self/fd | wc -l");
    start.user = "nobody".into();
    start.working_directory = "/usr".into();
    start.environment.insert("MORE".into(), "more".into());
    let out = run(&mut client, start.clone()).await.out();
    let home = run(&mut client, shell("grep ^nobody: /etc/passwd | cut -d: -f6")).await.out();
    // Four descriptors: the standard ones and the directory `ls` reads; and what this test's runner left open.
    let descriptors = 4 + inherited;
    assert_eq!(
        out,
        format!("nobody\nnogroup\n/usr\n{} nobody epoch-1 more\n0022\n{descriptors}\n", home.trim())
    );

    start.working_directory = "/no/such/directory".into();
    let status = begin(&mut client, start.clone(), Vec::new()).await.expect_err("no directory");
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("/no/such/directory"), "{status}");
    start.user = "no-such-user".into();
    assert_eq!(
        begin(&mut client, start, Vec::new()).await.expect_err("no user").code(),
        Code::InvalidArgument
    );
}

/// Descriptors above the standard ones that do not close on exec.
fn inherited_descriptors() -> usize {
    let leaks = |entry: std::fs::DirEntry| {
        let number: u32 = entry.file_name().to_str()?.parse().ok()?;
        let info = std::fs::read_to_string(entry.path()).ok()?;
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?.trim().to_owned();
        let closes = u32::from_str_radix(&flags, 8).ok()? & 0o2_000_000 != 0;
        (number > 2 && !closes).then_some(())
    };
    std::fs::read_dir("/proc/self/fdinfo").expect("proc").flatten().filter_map(leaks).count()
}

#[tokio::test]
async fn signals_are_at_their_defaults_in_a_fresh_process() {
    let (_server, mut client) = Server::claimed().await;
    let out = run(&mut client, shell("cat /proc/self/status")).await.out();
    let mask = |name: &str| {
        let line = out.lines().find_map(|line| line.strip_prefix(name)).expect("told");
        u64::from_str_radix(line.trim(), 16).expect("hexadecimal")
    };
    assert_eq!((mask("SigBlk:"), mask("SigCgt:")), (0, 0));
    // What the runner of this test ignores is inherited; SIGPIPE and SIGCHLD are what this process changes.
    assert_eq!(mask("SigIgn:") & (1 << 12 | 1 << 16), 0);
    let ran = run(&mut client, shell("set -o pipefail; yes | head -n 1")).await;
    assert_eq!((ran.out().as_str(), ran.code()), ("y\n", 141), "SIGPIPE ends a writer");
}

#[tokio::test]
async fn stdin_reaches_the_process_and_ends() {
    let (_server, mut client) = Server::claimed().await;
    let pieces: Vec<_> = (0..40u8).map(|n| vec![n; 60_000]).collect();
    let messages = pieces.iter().map(|piece| input(Input::Stdin(piece.clone().into())));
    let messages = messages.chain([input(Input::StdinClose(true))]).collect();
    let start = ExecStart { stdin: true, ..shell("cat") };
    let ran = collect(begin(&mut client, start, messages).await.expect("started")).await.expect("ran");
    assert!(ran.stdout == pieces.concat(), "{} bytes came back", ran.stdout.len());

    // Without stdin there is nothing to wait for.
    assert_eq!(run(&mut client, shell("cat; echo end")).await.out(), "end\n");
    // A process that does not read does not stop the call.
    let start = ExecStart { stdin: true, ..shell("exec 0<&-; echo closed") };
    let messages = vec![input(Input::Stdin(vec![0; 60_000].into())); 4];
    let ran = collect(begin(&mut client, start, messages).await.expect("started")).await.expect("ran");
    assert_eq!(ran.out(), "closed\n");
}

#[tokio::test]
async fn shell_text_may_be_longer_than_an_argument() {
    let (_server, mut client) = Server::claimed().await;
    let line = "0123456789abcdef\n".repeat(20_000);
    let mut start = shell(&format!("cat <<'END'\n{line}END\nexit 9"));
    start.user = "nobody".into();
    let ran = run(&mut client, start).await;
    assert!(ran.out() == line, "{} bytes, {}", ran.stdout.len(), String::from_utf8_lossy(&ran.stderr));
    assert_eq!(ran.code(), 9);
    // An argument of that length is the caller's mistake.
    let status = begin(&mut client, argv(&["echo", &line]), Vec::new()).await.expect_err("too long");
    assert_eq!(status.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_slow_reader_holds_the_process_back_and_gets_everything() {
    const BYTES: usize = 20_000_000;
    let (_server, mut client) = Server::claimed().await;
    let directory = tempfile::tempdir().expect("tempdir");
    let marker = directory.path().join("written");
    let text = format!("head -c {BYTES} /dev/zero; echo > {}", marker.display());
    let mut stream = begin(&mut client, shell(&text), Vec::new()).await.expect("started");
    started(&mut stream).await;
    let watched = Instant::now();
    while watched.elapsed() < Duration::from_millis(300) {
        assert!(!marker.exists(), "twenty megabytes were taken from the process although nobody reads");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let ran = collect(stream).await.expect("ran");
    assert_eq!(ran.stdout.len(), BYTES);
    assert!(marker.exists());
}

#[tokio::test]
async fn a_deadline_ends_the_whole_group() {
    let (_server, mut client) = Server::claimed().await;
    let start = ExecStart { deadline_ms: 200, ..shell("sleep 1000 & echo $!; wait") };
    let ran = run(&mut client, start).await;
    let exited = ran.exited.as_ref().expect("exited");
    assert_eq!((exited.exit_code, exited.timed_out), (143, true));
    let child: u32 = ran.out().trim().parse().expect("a pid");
    eventually("the child is gone too", || !is_alive(child)).await;
}

#[tokio::test]
async fn a_process_that_ignores_the_deadline_is_killed() {
    let (_server, mut client) = Server::claimed().await;
    let began = Instant::now();
    let start = ExecStart { deadline_ms: 100, ..shell("trap '' TERM; while :; do sleep 0.1; done") };
    let exited = run(&mut client, start).await.exited.expect("exited");
    assert_eq!((exited.exit_code, exited.signal, exited.timed_out), (137, 9, true));
    assert!(began.elapsed() >= Duration::from_secs(5), "it is given time to end by itself");
}

#[tokio::test]
async fn a_caller_that_leaves_ends_the_group() {
    let (_server, mut client) = Server::claimed().await;
    let mut stream =
        begin(&mut client, shell("sleep 1000 & echo $!; wait"), Vec::new()).await.expect("started");
    let leader = started(&mut stream).await;
    let child = child_of(leader).await;
    drop(stream);
    eventually("both are gone", || !is_alive(leader) && !is_alive(child)).await;
    assert_eq!(client.status(StatusRequest {}).await.expect("serving").into_inner().processes, 0);
}

async fn child_of(leader: u32) -> u32 {
    let children = format!("/proc/{leader}/task/{leader}/children");
    let mut found = None;
    eventually("the child runs", || {
        let text = std::fs::read_to_string(&children).unwrap_or_default();
        found = text.split_whitespace().next().and_then(|pid| pid.parse().ok());
        found.is_some()
    })
    .await;
    found.expect("found")
}

#[tokio::test]
async fn a_detached_process_is_found_again_by_its_pid() {
    let (_server, mut client) = Server::claimed().await;
    let start = ExecStart { detach: true, name: "worker".into(), ..shell("echo one; read line; echo $line") };
    let start = ExecStart { shell: format!("{}; exit 7", start.shell), stdin: true, ..start };
    let (sender, receiver) = mpsc::channel(4);
    sender.send(input(Input::Start(start))).await.expect("sent");
    let mut stream = client.exec(ReceiverStream::new(receiver)).await.expect("started").into_inner();
    let pid = started(&mut stream).await;

    let mut attached = client
        .attach(AttachRequest { pid, tail_bytes: 0, follow: true })
        .await
        .expect("attached")
        .into_inner();
    let first = attached.message().await.expect("answered").expect("output");
    assert_eq!(first, piece(Source::Stdout, "one\n".into()));
    sender.send(input(Input::Stdin("two\n".into()))).await.expect("sent");
    let ran = collect(attached).await.expect("ended");
    assert_eq!((ran.out().as_str(), ran.code()), ("two\n", 7));

    let listed = client.list_processes(ListProcessesRequest {}).await.expect("listed").into_inner().processes;
    let process = listed.iter().find(|process| process.pid == pid).expect("remembered");
    assert_eq!((process.name.as_str(), process.running), ("worker", false));
    assert_eq!(process.exited.as_ref().map(|exited| exited.exit_code), Some(7));
    let again = client.attach(AttachRequest { pid, tail_bytes: 4, follow: false }).await.expect("retained");
    let ran = collect(again.into_inner()).await.expect("ended");
    assert_eq!((ran.out().as_str(), ran.code()), ("two\n", 7));
}

#[tokio::test]
async fn a_detached_process_outlives_its_call_and_can_be_signalled() {
    let (_server, mut client) = Server::claimed().await;
    let start = ExecStart { detach: true, ..shell("echo up; exec sleep 1000") };
    let mut stream = begin(&mut client, start, Vec::new()).await.expect("started");
    let pid = started(&mut stream).await;
    let up = stream.message().await.expect("running").expect("output");
    assert_eq!(up, piece(Source::Stdout, "up\n".into()));
    drop(stream);
    let attached =
        client.attach(AttachRequest { pid, tail_bytes: 0, follow: true }).await.expect("still there");
    assert!(is_alive(pid));
    let signalled = client.signal(SignalRequest { pid, signal: 15, group: true }).await.expect("signalled");
    assert!(signalled.into_inner().delivered);
    let ran = collect(attached.into_inner()).await.expect("ended");
    assert_eq!((ran.out().as_str(), ran.code()), ("up\n", 143));
    let again = client.signal(SignalRequest { pid, signal: 15, group: true }).await.expect("answered");
    assert!(!again.into_inner().delivered, "it is gone");
}

/// The caller's connection breaks after the start was told; nothing of the output is lost to the one that comes back.
#[tokio::test]
async fn output_goes_on_while_nobody_is_connected() {
    let (server, mut client) = Server::claimed().await;
    let directory = tempfile::tempdir().expect("tempdir");
    let done = directory.path().join("done");
    let mut lost = server.client(harness::TOKEN).await;
    let text = format!("seq 20000; echo > {}; seq 20001 20100; exit 4", done.display());
    let mut stream =
        begin(&mut lost, ExecStart { detach: true, ..shell(&text) }, Vec::new()).await.expect("started");
    let pid = started(&mut stream).await;
    drop((stream, lost));
    eventually("it wrote on", || done.exists()).await;
    let expected: String = (1..=20_100).map(|n| format!("{n}\n")).collect();
    for _ in 0..2 {
        let request = AttachRequest { pid, tail_bytes: 1 << 20, follow: true };
        let ran = collect(client.attach(request).await.expect("attached").into_inner()).await.expect("ended");
        assert!(ran.out() == expected, "{} of {} bytes", ran.stdout.len(), expected.len());
        assert_eq!(ran.code(), 4);
    }
}

#[tokio::test]
async fn attaching_to_what_is_not_there_says_so() {
    let (_server, mut client) = Server::claimed().await;
    let attach = |pid| AttachRequest { pid, tail_bytes: 0, follow: true };
    assert_eq!(client.attach(attach(1)).await.expect_err("not ours").code(), Code::NotFound);
    let pid = run(&mut client, shell("true")).await.pid;
    assert_eq!(client.attach(attach(pid)).await.expect_err("not kept").code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn a_terminal_is_a_terminal() {
    let (_server, mut client) = Server::claimed().await;
    let size = |columns, rows| TerminalSize { columns, rows };
    let start = ExecStart {
        terminal: Some(size(100, 30)),
        stdin: true,
        ..shell("tty; stty size; echo $TERM; read x; stty size; echo got $x; seq 3000 | tail -n 1")
    };
    let (sender, receiver) = mpsc::channel(4);
    sender.send(input(Input::Start(start))).await.expect("sent");
    let stream = client.exec(ReceiverStream::new(receiver)).await.expect("started").into_inner();
    sender.send(input(Input::Resize(size(120, 40)))).await.expect("sent");
    sender.send(input(Input::Stdin("hello\n".into()))).await.expect("sent");
    let ran = collect(stream).await.expect("ran");
    let out = ran.out().replace('\r', "");
    assert!(out.contains("/dev/pts/"), "{out}");
    assert!(out.contains("40 120\ngot hello\n3000\n"), "{out}");
    assert!(out.contains("xterm-256color"), "{out}");
    assert_eq!(ran.code(), 0);
}

#[tokio::test]
async fn a_terminal_that_is_left_hangs_up() {
    let (_server, mut client) = Server::claimed().await;
    let start = ExecStart { terminal: Some(TerminalSize::default()), ..shell("sleep 1000") };
    let mut stream = begin(&mut client, start, Vec::new()).await.expect("started");
    let pid = started(&mut stream).await;
    drop(stream);
    eventually("the session is gone", || !is_alive(pid)).await;
}

#[tokio::test]
async fn many_short_processes_at_once_keep_their_exit_codes() {
    let (_server, client) = Server::claimed().await;
    let tasks: Vec<_> = (0..100)
        .map(|number| {
            let mut client: Client = client.clone();
            tokio::spawn(async move {
                let ran = run(&mut client, shell(&format!("echo {number}; exit {number}"))).await;
                assert_eq!((ran.out(), ran.code()), (format!("{number}\n"), number));
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("right");
    }
}
