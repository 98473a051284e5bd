//! The control of `cargo xtask bench create`: the least that boots or restores such a guest, and calls it.
//!
//! `roost-control boot|restore DIRECTORY IMAGE`. Nothing of the product but the guest's contract. In a fresh namespace
//! with a ready tap, QEMU runs with the arguments of one of the product's VMs (`cmdline` in the directory), except
//! that it opens the tap by name. The clock starts before QEMU does. `boot` leaves `device`, `memory` and the guest's
//! `disk` behind, for one `restore`. Prints its figures as JSON.
#![allow(
    clippy::disallowed_methods,
    reason = "starts a VMM and dials its guest, without what the product adds"
)]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use hyper_util::rt::TokioIo;
use nix::fcntl::{FcntlArg::F_SETFD, FdFlag, fcntl};
use nix::sched::{CloneFlags, unshare};
use roost_proto::guest::{self as rpc, exec_input::Input, exec_output::Output, guest_client::GuestClient};
use serde_json::{Value, json};
use tokio_stream::StreamExt;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;

type Intercepted<F> = InterceptedService<Channel, F>;

const TOKENS: [&str; 2] = ["control-token-of-the-boot", "control-token-of-the-restore"];
/// As often as the product dials.
const PACE: Duration = Duration::from_millis(50);
const DEADLINE: Duration = Duration::from_secs(60);
/// A page: what is zero is not kept, as the product does.
const CHUNK: usize = 4096;
const SLOT: &str = "link set lo up|tuntap add tap0 mode tap vnet_hdr|link set tap0 address 02:00:00:00:00:01 up|\
    address add 10.0.0.1/30 dev tap0|neigh add 10.0.0.2 lladdr 02:00:00:00:00:02 dev tap0";

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [mode, directory, image] = &words[..] else { bail!("usage: roost-control MODE DIRECTORY IMAGE") };
    let (restore, directory, image) = (mode == "restore", Path::new(directory), Path::new(image));
    // Numbers count: whoever started this may have left something open.
    (3..64).for_each(|number| nix::unistd::close(number).unwrap_or_default());
    unshare(CloneFlags::CLONE_NEWNET)?;
    for line in SLOT.split('|') {
        ensure!(Command::new("ip").args(line.split_whitespace()).status()?.success(), "ip {line}");
    }
    let socket = directory.join("qmp.sock");
    let _ = fs::remove_file(&socket);
    let open = |path: &Path, write| File::options().read(true).write(write).open(path);
    let (disk, device) = (directory.join("disk"), directory.join("device"));
    // In the product's order from 3 on; in the place of its tap, the device state.
    let inherited: [OwnedFd; 8] = [
        UnixListener::bind(&socket)?.into(),
        open(&image.join("kernel"), false)?.into(),
        open(&image.join("initramfs"), false)?.into(),
        open(Path::new("/dev/zero"), true)?.into(),
        open(&image.join("base.erofs"), false)?.into(),
        open(&disk, true)?.into(),
        open(&disk, false)?.into(),
        if restore { File::open(&device)?.into() } else { File::create(&device)?.into() },
    ];
    for (number, file) in (3..).zip(&inherited) {
        ensure!(file.as_raw_fd() == number, "descriptor {number} is taken");
        fcntl(file, F_SETFD(FdFlag::empty()))?;
    }
    let mut command = command(&fs::read_to_string(directory.join("cmdline"))?, restore)?;
    let memory = directory.join("memory");
    let roots = fs::read(directory.join("roots.pem")).unwrap_or_default();
    let begun = Instant::now();
    let mut vmm = Vmm::connect(command.spawn()?, &socket)?;
    if restore {
        vmm.fill(&memory)?;
        vmm.ask("migrate-incoming", json!({ "uri": "fd:10" }))?;
        while vmm.ask("query-status", Value::Null)?["status"] == "inmigrate" {}
    }
    vmm.ask("cont", Value::Null)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let call = async { tokio::time::timeout(DEADLINE, call(restore, roots, begun)).await? };
    println!("{}", runtime.block_on(call)?);
    if !restore {
        vmm.ask("stop", Value::Null)?;
        vmm.ask("xen-save-devices-state", json!({ "filename": "/dev/fdset/77", "live": false }))?;
        vmm.dump(&memory)?;
    }
    Ok(())
}

fn command(of_product: &str, restore: bool) -> Result<Command> {
    let mut words = of_product.trim_end_matches('\0').split('\0');
    let mut command = Command::new(words.next().context("an empty command line")?);
    let named = "tap,id=net,ifname=tap0,script=no,downscript=no";
    command.args(words.map(|word| if word.starts_with("tap,id=net") { named } else { word }));
    command.args(if restore { ["-incoming", "defer"] } else { ["-add-fd", "fd=10,set=77"] });
    Ok(command)
}

/// First call and execs.
async fn call(restore: bool, trust_bundle: Vec<u8>, begun: Instant) -> Result<Value> {
    let mut stream = Some(TokioIo::new(dial().await));
    let connector = tower::service_fn(move |_| std::future::ready(stream.take().ok_or(std::fmt::Error)));
    let endpoint = tonic::transport::Endpoint::from_static("http://guest.invalid");
    let channel = endpoint.connect_with_connector(connector).await?;
    let client = |token: &str| -> Result<_> {
        let bearer: tonic::metadata::AsciiMetadataValue = format!("Bearer {token}").parse()?;
        Ok(GuestClient::with_interceptor(channel.clone(), move |mut request: tonic::Request<()>| {
            request.metadata_mut().insert("authorization", bearer.clone());
            Ok(request)
        }))
    };
    let personalisation = Some(rpc::Personalisation {
        epoch: 1 + u64::from(restore),
        entropy: vec![7; 64].into(),
        time_us: SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_micros() as i64,
        host_name: "control".to_owned(),
        machine_id: "0123456789abcdef0123456789abcdef".to_owned(),
        boot_id: "01234567-89ab-cdef-0123-456789abcdef".to_owned(),
        trust_bundle_pem: trust_bundle.into(),
        ..Default::default()
    });
    let [token, new_token] = TOKENS.map(str::to_owned);
    let mut guest = client(TOKENS[0])?;
    if restore {
        guest.personalise(rpc::PersonaliseRequest { old_token: token, new_token, personalisation }).await?;
        guest = client(TOKENS[1])?;
    } else {
        guest.claim(rpc::ClaimRequest { token, personalisation }).await?;
    }
    let since = |begun: Instant| begun.elapsed().as_secs_f64() * 1e3;
    let (ready_ms, mut execs) = (since(begun), [Vec::new(), Vec::new()]);
    exec(&mut guest, "true").await?;
    let first_exec_ms = since(begun);
    for (took, text) in execs.iter_mut().zip(["true", "python3 -c 'print(1)'"]) {
        // The first run of a program has the emulator translate it, and the disk read.
        for warm in [false, true, true, true, true, true] {
            let begun = Instant::now();
            exec(&mut guest, text).await?;
            took.extend(warm.then(|| since(begun)));
        }
    }
    guest.quiesce(rpc::QuiesceRequest {}).await?;
    let [true_ms, python_ms] = execs;
    Ok(
        json!({ "ready_ms": ready_ms, "first_exec_ms": first_exec_ms, "true_ms": true_ms, "python_ms": python_ms }),
    )
}

/// The first connection that the guest takes.
async fn dial() -> tokio::net::TcpStream {
    let (won, mut first) = tokio::sync::mpsc::channel(1);
    loop {
        let won = won.clone();
        tokio::spawn(async move {
            if let Ok(stream) = tokio::net::TcpStream::connect(("10.0.0.2", rpc::GUEST_RPC_PORT)).await {
                let _ = (stream.set_nodelay(true), won.try_send(stream));
            }
        });
        if let Ok(Some(stream)) = tokio::time::timeout(PACE, first.recv()).await {
            return stream;
        }
    }
}

async fn exec<F: tonic::service::Interceptor>(
    guest: &mut GuestClient<Intercepted<F>>,
    text: &str,
) -> Result<()> {
    let start = Input::Start(rpc::ExecStart { shell: text.to_owned(), ..Default::default() });
    let input = tokio_stream::once(rpc::ExecInput { input: Some(start) }).chain(tokio_stream::pending());
    let mut output = guest.exec(input).await?.into_inner();
    while let Some(message) = output.message().await? {
        if let Some(Output::Exited(exited)) = message.output {
            ensure!(exited.exit_code == 0, "{text} exited with {}", exited.exit_code);
            return Ok(());
        }
    }
    bail!("{text} never ended")
}

/// A QEMU, killed when this goes.
struct Vmm {
    child: Child,
    control: BufReader<UnixStream>,
}

impl Vmm {
    fn connect(child: Child, socket: &Path) -> Result<Self> {
        let mut vmm = Self { child, control: BufReader::new(UnixStream::connect(socket)?) };
        vmm.control.get_ref().set_read_timeout(Some(DEADLINE))?;
        vmm.control.read_line(&mut String::new())?;
        vmm.ask("qmp_capabilities", Value::Null)?;
        Ok(vmm)
    }

    fn ask(&mut self, execute: &str, arguments: Value) -> Result<Value> {
        let arguments = if arguments.is_null() { json!({}) } else { arguments };
        writeln!(self.control.get_mut(), "{}", json!({ "execute": execute, "arguments": arguments }))?;
        loop {
            let mut line = String::new();
            ensure!(self.control.read_line(&mut line)? > 0, "QEMU is gone before {execute}");
            let mut said: Value = serde_json::from_str(&line)?;
            ensure!(said.get("error").is_none(), "{execute}: {line}");
            if let Some(answer) = said.get_mut("return") {
                return Ok(answer.take());
            }
        }
    }

    /// The guest's memory: the largest mapping of the file behind it.
    fn memory(&self) -> Result<(File, u64, u64)> {
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.child.id()))?;
        let range = |line: &str| {
            let (start, end) = line.split_once(' ')?.0.split_once('-')?;
            Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
        };
        let ranges = maps.lines().filter(|line| line.ends_with("/dev/zero")).filter_map(range);
        let (start, end) = ranges.max_by_key(|(start, end)| end - start).context("no memory")?;
        let file = File::options().read(true).write(true).open(format!("/proc/{}/mem", self.child.id()))?;
        Ok((file, start, end))
    }

    fn dump(&self, path: &Path) -> Result<()> {
        let (memory, start, end) = self.memory()?;
        let (mut out, mut chunk) = (std::io::BufWriter::new(File::create(path)?), vec![0; CHUNK]);
        for offset in (0..end - start).step_by(CHUNK) {
            memory.read_exact_at(&mut chunk, start + offset)?;
            if chunk.iter().any(|byte| *byte != 0) {
                out.write_all(&offset.to_le_bytes())?;
                out.write_all(&chunk)?;
            }
        }
        Ok(out.flush()?)
    }

    fn fill(&self, path: &Path) -> Result<()> {
        let (memory, start, _) = self.memory()?;
        for piece in fs::read(path)?.chunks_exact(8 + CHUNK) {
            let (offset, contents) = piece.split_at(8);
            memory.write_all_at(contents, start + u64::from_le_bytes(offset.try_into()?))?;
        }
        Ok(())
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        let _ = (self.child.kill(), self.child.wait());
    }
}
