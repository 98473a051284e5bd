//! The real binary, started as root like on a host, in directories of its own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub(crate) struct Dataplane {
    pub(crate) child: Child,
    pub(crate) control: PathBuf,
    _directory: tempfile::TempDir,
}

impl Dataplane {
    pub(crate) fn start(role: &str, more: &str) -> Self {
        let directory = tempfile::Builder::new().prefix("roost-dp-").tempdir().unwrap();
        // The process changes its uid: it must be able to reach its own directories.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(directory.path(), open).unwrap();
        let control = directory.path().join("run/c.sock");
        let config = directory.path().join("config.toml");
        let text = format!(
            "[process]\ndirectory = {:?}\ncontrol_socket = {:?}\n{more}",
            directory.path().join("state"),
            control,
        );
        std::fs::write(&config, text).unwrap();
        let child = spawn(role, &config);
        let mut this = Self { child, control, _directory: directory };
        this.wait_for_socket();
        this
    }

    /// Kills the process and starts another over the same directories.
    pub(crate) fn kill_and_start_again(&mut self, role: &str) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let _ = std::fs::remove_file(&self.control);
        self.child = spawn(role, &self.directory().join("config.toml"));
        self.wait_for_socket();
    }

    pub(crate) fn directory(&self) -> PathBuf {
        self._directory.path().to_owned()
    }

    fn wait_for_socket(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !self.is_listening() {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the data plane ended: {status}");
            }
            assert!(Instant::now() < deadline, "no control socket");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The socket's file is there from `bind` on; until `listen` who connects is refused.
    fn is_listening(&self) -> bool {
        const ACCEPTING: &str = "00010000";
        let sockets = std::fs::read_to_string(format!("/proc/{}/net/unix", self.child.id()));
        let path = self.control.to_string_lossy();
        sockets.unwrap_or_default().lines().any(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            fields.get(3) == Some(&ACCEPTING) && fields.last() == Some(&&*path)
        })
    }

    /// Asks it to stop and waits for it.
    pub(crate) fn stop(mut self) -> std::process::ExitStatus {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM).unwrap();
        self.child.wait().unwrap()
    }
}

/// The program of this build, or the one in the directory that the environment names: the same tests hold for it.
pub(crate) fn binary() -> PathBuf {
    let built = || PathBuf::from(env!("CARGO_BIN_EXE_roost-dataplane"));
    std::env::var_os("ROOST_TEST_BINARIES").map_or_else(built, |dir| Path::new(&dir).join("roost-dataplane"))
}

fn spawn(role: &str, config: &Path) -> Child {
    let mut command = Command::new(binary());
    command.args([role, "--config"]).arg(config).spawn().unwrap()
}

impl Drop for Dataplane {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
