//! The control of `cargo xtask bench create`: the least that boots such a guest, restores it, and calls it.
//!
//! Nothing of the product but the guest's contract. In a fresh namespace with a ready tap, QEMU runs with the arguments
//! of one of the product's VMs (`cmdline` in the directory), but for a tap by name and memory that a restore maps anew.
#![allow(clippy::disallowed_methods, reason = "starts a VMM and dials its guest, without the product")]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use hyper_util::rt::TokioIo;
use nix::fcntl::{FcntlArg::F_SETFD, FdFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use roost_proto::guest::{self as rpc, guest_client::GuestClient};
use serde_json::{Value, json};
use tonic::{Request, metadata::AsciiMetadataValue, transport::Endpoint};

const TAP: &str = "tap,id=net,ifname=tap0,script=no,downscript=no";
const SLOT: &str = "link set lo up|tuntap add tap0 mode tap vnet_hdr|link set tap0 address 02:00:00:00:00:01 up|\
    address add 10.0.0.1/30 dev tap0|neigh add 10.0.0.2 lladdr 02:00:00:00:00:02 dev tap0";

fn main() -> Result<()> {
    let usage = |_| anyhow::anyhow!("usage: roost-control DIRECTORY IMAGE");
    let words = <[String; 2]>::try_from(std::env::args().skip(1).collect::<Vec<_>>()).map_err(usage)?;
    let [directory, image] = words.each_ref().map(Path::new);
    // Descriptors' numbers count.
    (3..64).for_each(|number| nix::unistd::close(number).unwrap_or_default());
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
    for line in SLOT.split('|') {
        ensure!(Command::new("ip").args(line.split_whitespace()).status()?.success(), "ip {line}");
    }
    let [socket, device] =
        ["sock", "device"].map(|name| directory.join(format!("{}.{name}", std::process::id())));
    let read = |path: &Path| -> Result<OwnedFd> { Ok(File::open(path)?.into()) };
    let cmdline = fs::read_to_string(directory.join("cmdline"))?;
    // In the product's order from 3 on; in the place of its tap and behind it, the device state.
    let inherited = [
        UnixListener::bind(&socket)?.into(),
        read(&image.join("kernel"))?,
        read(&image.join("initramfs"))?,
        memfd_create(c"memory", MFdFlags::MFD_CLOEXEC)?,
        read(&image.join("base.erofs"))?,
        File::options().read(true).write(true).open(directory.join("disk"))?.into(),
        read(&directory.join("disk"))?,
        File::create(&device)?.into(),
        read(&device)?,
    ];
    for (number, file) in (3..).zip(&inherited) {
        ensure!(file.as_raw_fd() == number, "descriptor {number} is taken");
        fcntl(file, F_SETFD(FdFlag::empty()))?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let turn = |restore: bool| -> Result<f64> {
        let roots = fs::read(directory.join("roots.pem"))?;
        let begun = Instant::now();
        let mut vmm = Vmm::start(&cmdline, restore, &socket)?;
        if restore {
            vmm.ask("migrate-incoming", json!({ "uri": "fd:11" }))?;
            while vmm.ask("query-status", json!({}))?["status"] == "inmigrate" {}
        }
        vmm.ask("cont", json!({}))?;
        let took_ms = runtime.block_on(call(restore, roots, begun))?;
        if !restore {
            vmm.ask("stop", json!({}))?;
            vmm.ask("xen-save-devices-state", json!({ "filename": "/dev/fdset/77", "live": false }))?;
        }
        Ok(took_ms)
    };
    println!("{}", json!({ "boot_ms": turn(false)?, "restore_ms": turn(true)? }));
    Ok(())
}

/// The first call, as the product makes it: milliseconds from the start to its answer.
async fn call(restore: bool, roots: Vec<u8>, begun: Instant) -> Result<f64> {
    let dial = || tokio::net::TcpStream::connect(("10.0.0.2", rpc::GUEST_RPC_PORT));
    let taken = loop {
        // As often as the product dials.
        if let Ok(Ok(stream)) = tokio::time::timeout(Duration::from_millis(50), dial()).await {
            break stream;
        }
    };
    let mut stream = Some(TokioIo::new(taken));
    let connector = tower::service_fn(move |_| std::future::ready(stream.take().ok_or(std::fmt::Error)));
    let channel = Endpoint::from_static("http://guest.invalid").connect_with_connector(connector).await?;
    let personalisation = Some(rpc::Personalisation {
        epoch: 1 + u64::from(restore),
        entropy: vec![7; 64].into(),
        time_us: SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_micros() as i64,
        host_name: "control".to_owned(),
        machine_id: "0123456789abcdef0123456789abcdef".to_owned(),
        boot_id: "01234567-89ab-cdef-0123-456789abcdef".to_owned(),
        trust_bundle_pem: roots.into(),
        ..Default::default()
    });
    let [token, new_token] = ["control-token-of-the-boot", "control-token-of-the-restore"].map(str::to_owned);
    let bearer: AsciiMetadataValue = format!("Bearer {token}").parse()?;
    let mut guest = GuestClient::with_interceptor(channel, move |mut call: Request<()>| {
        call.metadata_mut().insert("authorization", bearer.clone());
        Ok(call)
    });
    if restore {
        guest.personalise(rpc::PersonaliseRequest { old_token: token, new_token, personalisation }).await?;
    } else {
        guest.claim(rpc::ClaimRequest { token, personalisation }).await?;
    }
    Ok(begun.elapsed().as_secs_f64() * 1e3)
}

/// A QEMU, killed when this goes.
struct Vmm(Child, BufReader<UnixStream>);

impl Vmm {
    fn start(cmdline: &str, restore: bool, socket: &Path) -> Result<Self> {
        // What the guest leaves in its memory is what a restore begins with.
        let memory = if restore { "share=off" } else { "share=on" };
        let text = cmdline.replace("tap,id=net,fd=10", TAP).replace("share=off", memory);
        let (program, arguments) = text.trim_end_matches('\0').split_once('\0').context("no arguments")?;
        let more = if restore { ["-incoming", "defer"] } else { ["-add-fd", "fd=10,set=77"] };
        let child = Command::new(program).args(arguments.split('\0')).args(more).spawn()?;
        let mut vmm = Self(child, BufReader::new(UnixStream::connect(socket)?));
        vmm.1.read_line(&mut String::new())?;
        vmm.ask("qmp_capabilities", json!({}))?;
        Ok(vmm)
    }

    fn ask(&mut self, execute: &str, arguments: Value) -> Result<Value> {
        writeln!(self.1.get_mut(), "{}", json!({ "execute": execute, "arguments": arguments }))?;
        loop {
            let mut line = String::new();
            ensure!(self.1.read_line(&mut line)? > 0, "QEMU is gone before {execute}");
            let said: Value = serde_json::from_str(&line)?;
            match (said.get("return"), said.get("error")) {
                (Some(answer), _) => return Ok(answer.clone()),
                (_, error) => ensure!(error.is_none(), "{execute}: {line}"),
            }
        }
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        let _ = (self.0.kill(), self.0.wait());
    }
}
