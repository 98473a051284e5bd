//! What stands while the proxies are measured: the lab with the real egress, the upstream, nginx as the other proxy.
//!
//! All of it goes with this: the lab when its input closes, the servers by a signal, namespaces with their last user.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;

use super::load::{SCRIPT, Way};
use crate::{poll, program};

const START_DEADLINE: Duration = Duration::from_secs(30);
/// Ends of the link between guest and world that only nginx is reached by.
const NGINX_ADDRESS: &str = "10.9.0.1";
const GUEST_ADDRESS: &str = "10.9.0.2";
const NGINX_LINK: [&str; 2] = ["bench0", "bench1"];
const LARGE_BYTES: usize = 1 << 20;

#[derive(Debug)]
pub(super) struct Place {
    pub(super) name: String,
    pub(super) placeholder: String,
    secret: String,
    public: String,
    directory: PathBuf,
    /// Threads that live in the two namespaces.
    guest: u64,
    world: u64,
    egress_pid: u64,
    other_core: String,
    /// nginx as proxy, then as upstream: stopped before the lab goes.
    servers: Vec<Running>,
    _lab: Running,
}

impl Place {
    pub(super) fn build(binaries: &Path, proxy_core: usize, other_core: usize) -> anyhow::Result<Self> {
        let (lab, said) = start_lab(binaries, proxy_core, other_core)?;
        let text = |name: &str| {
            let text = said[name].as_str().map(str::to_owned);
            text.with_context(|| format!("the lab said no {name}: {said}"))
        };
        let number =
            |name: &str| said[name].as_u64().with_context(|| format!("the lab said no {name}: {said}"));
        let mut place = Self {
            name: text("name")?,
            placeholder: text("placeholder")?,
            secret: text("secret")?,
            public: text("public")?,
            directory: text("directory")?.into(),
            guest: number("guest_thread")?,
            world: number("world_thread")?,
            egress_pid: number("egress_pid")?,
            other_core: other_core.to_string(),
            servers: Vec::new(),
            _lab: lab,
        };
        place.write_files(&text("address")?)?;
        place.link()?;
        for thread in [place.guest, place.world] {
            reuse_ports(thread)?;
        }
        place.serve("proxy", proxy_core)?;
        place.serve("upstream", other_core)?;
        for way in [Way::Egress, Way::Nginx] {
            place.await_answer(way)?;
        }
        Ok(place)
    }

    pub(super) fn proxy_pid(&self, way: Way) -> u64 {
        match way {
            Way::Egress => self.egress_pid,
            Way::Nginx => self.servers[0].0.id().into(),
        }
    }

    pub(super) fn script(&self) -> PathBuf {
        self.directory.join("report.lua")
    }

    /// A command in the guest, where the upstream's name leads to one proxy or the other.
    pub(super) fn in_guest(&self, way: Way, words: &[String]) -> Command {
        let mut command = inside(self.guest);
        command.args(["unshare", "--mount", "--propagation", "private"]);
        command.args(["sh", "-c", "mount --bind \"$1\" /etc/hosts && shift && exec \"$@\"", "sh"]);
        command.arg(self.hosts(way)).args(["taskset", "-c", &self.other_core]).args(words);
        command
    }

    fn hosts(&self, way: Way) -> PathBuf {
        self.directory.join(format!("{way:?}.hosts"))
    }

    fn write_files(&self, synthetic: &str) -> anyhow::Result<()> {
        let write = |name: &str, content: String| std::fs::write(self.directory.join(name), content);
        write("report.lua", SCRIPT.to_owned())?;
        std::fs::write(self.hosts(Way::Egress), format!("{synthetic} {}\n", self.name))?;
        std::fs::write(self.hosts(Way::Nginx), format!("{NGINX_ADDRESS} {}\n", self.name))?;
        write("1k", "x".repeat(1024))?;
        write("1m", "x".repeat(LARGE_BYTES))?;
        write("proxy.conf", self.settings("proxy", &self.proxy_settings()))?;
        Ok(write("upstream.conf", self.settings("upstream", &self.upstream_settings()))?)
    }

    /// What both servers have: one process, the certificate, no limit to a connection's requests.
    fn settings(&self, role: &str, server: &str) -> String {
        let directory = self.directory.display();
        let temporary: Vec<String> = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|kind| format!(" {kind}_temp_path {directory}/{role}-{kind};\n"))
            .collect();
        format!(
            "daemon off;\nmaster_process off;\npid {directory}/{role}.pid;\nerror_log stderr warn;\n\
             events {{ worker_connections 1024; }}\nhttp {{\n access_log off;\n{temporary} tcp_nodelay on;\n \
             sendfile on;\n keepalive_timeout 600s;\n keepalive_requests 1000000000;\n \
             ssl_certificate {directory}/server.pem;\n ssl_certificate_key {directory}/server.key;\n \
             ssl_protocols TLSv1.3;\n{server}}}\n",
            temporary = temporary.concat(),
        )
    }

    fn upstream_settings(&self) -> String {
        let Self { public, secret, directory, .. } = self;
        format!(
            " server {{\n  listen {public}:443 ssl backlog=1024;\n  root {directory};\n  location /secret/ {{\n   \
             if ($http_x_api_key != \"{secret}\") {{ return 403; }}\n   alias {directory}/;\n  }}\n }}\n",
            directory = directory.display(),
        )
    }

    fn proxy_settings(&self) -> String {
        let Self { public, secret, name, directory, .. } = self;
        // An nginx that verifies its upstream, as egress does, and writes no body to a file on its way.
        let pass = format!(
            "proxy_pass https://upstream; proxy_http_version 1.1; proxy_set_header Connection \"\"; \
             proxy_set_header Host {name};"
        );
        format!(
            " upstream upstream {{ server {public}:443; keepalive 64; keepalive_requests 1000000000; }}\n \
             proxy_ssl_protocols TLSv1.3;\n proxy_ssl_name {name};\n proxy_ssl_server_name on;\n \
             proxy_ssl_verify on;\n proxy_ssl_trusted_certificate {roots};\n proxy_max_temp_file_size 0;\n \
             server {{\n  listen {NGINX_ADDRESS}:443 ssl backlog=1024;\n  location / {{ {pass} }}\n  \
             location /secret/ {{ {pass} proxy_set_header x-api-key \"{secret}\"; }}\n }}\n",
            roots = directory.join("upstream-root.pem").display(),
        )
    }

    /// A link like the one to egress, between the guest and where nginx is.
    fn link(&self) -> anyhow::Result<()> {
        let [ours, guests] = NGINX_LINK;
        ip(self.world, &format!("link add {ours} type veth peer name {guests} netns {}", self.guest))?;
        for (thread, device, address) in
            [(self.world, ours, NGINX_ADDRESS), (self.guest, guests, GUEST_ADDRESS)]
        {
            ip(thread, &format!("address add {address}/30 dev {device}"))?;
            ip(thread, &format!("link set {device} up"))?;
        }
        Ok(())
    }

    fn serve(&mut self, role: &str, core: usize) -> anyhow::Result<()> {
        let mut command = inside(self.world);
        command.args(["taskset", "-c", &core.to_string()]);
        // Ends with this program, however that ends.
        command.args(["setpriv", "--pdeathsig", "TERM", "nginx", "-p"]).arg(&self.directory);
        command.arg("-c").arg(self.directory.join(format!("{role}.conf")));
        command.stdin(Stdio::null());
        let running = command.spawn().context("starting nginx: scripts/ensure-packages bench installs it")?;
        self.servers.push(Running(running));
        Ok(())
    }

    /// Until the credential arrives on this way: then everything else is there too.
    fn await_answer(&self, way: Way) -> anyhow::Result<()> {
        let url = format!("https://{}/secret/1k", self.name);
        let header = format!("x-api-key: {}", self.placeholder);
        let words: Vec<String> =
            ["wrk", "-t1", "-c1", "-d1", "-s", &self.script().to_string_lossy(), "-H", &header, &url]
                .map(str::to_owned)
                .to_vec();
        poll::until(&format!("an answer through {way:?}"), START_DEADLINE, || {
            let text = program::run(self.in_guest(way, &words), b"")?.success("wrk (package wrk)")?.text();
            let said: Value =
                serde_json::from_str(text.lines().last().unwrap_or_default()).unwrap_or_default();
            let works = said["errors"] == 0 && said["requests"].as_u64() > Some(0);
            Ok(works.then_some(()))
        })
    }
}

/// A command in the namespace that a thread is in.
fn inside(thread: u64) -> Command {
    let mut command = program::command("nsenter");
    command.arg(format!("--net=/proc/{thread}/ns/net"));
    command
}

/// New connections by the thousand each second would use up the ports of a minute.
fn reuse_ports(thread: u64) -> anyhow::Result<()> {
    let mut command = inside(thread);
    command.args(["sh", "-c", "echo 1 >/proc/sys/net/ipv4/tcp_tw_reuse"]);
    program::run(command, b"")?.success("tcp_tw_reuse").map(drop)
}

fn ip(thread: u64, words: &str) -> anyhow::Result<()> {
    let mut command = inside(thread);
    command.arg("ip").args(words.split(' '));
    program::run(command, b"")?.success(&format!("ip {words}")).map(drop)
}

/// Starts the lab and reads its one line.
fn start_lab(binaries: &Path, proxy_core: usize, other_core: usize) -> anyhow::Result<(Running, Value)> {
    let lab = binaries.join("examples/egress-yardstick");
    ensure!(lab.exists(), "{} is not built: cargo xtask bench egress does", lab.display());
    let mut command = program::command(&lab);
    command.arg(binaries.join("roost-dataplane")).args([proxy_core.to_string(), other_core.to_string()]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let stdout = child.stdout.take().context("no output")?;
    let running = Running(child);
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    let said = serde_json::from_str(&line).context("the lab could not be built")?;
    Ok((running, said))
}

/// A process that is asked to end when this goes.
#[derive(Debug)]
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // The lab ends by itself and takes egress with it.
        if self.0.stdin.take().is_none() {
            let pid = nix::unistd::Pid::from_raw(self.0.id().cast_signed());
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        }
        let _ = self.0.wait();
    }
}
