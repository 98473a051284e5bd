//! An instance of a test's own, removed with everything that carries its name.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use roost_agent::host::names::{Instance, Names};
use roost_agent::host::{cgroup, reclaim};
use roost_agent::image::{Image, Images};
use roost_domain::Ulid;
use roost_domain::id::ExecutionId;

pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) struct Scratch {
    pub(crate) instance: Instance,
    pub(crate) dir: PathBuf,
}

impl Scratch {
    /// `name`: short, lower-case, unique among the tests.
    pub(crate) fn new(name: &str) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "this test needs root: run the suite as root");
        let name = format!("t{}{name}", std::process::id());
        let dir = PathBuf::from("/run").join(&name);
        std::fs::create_dir_all(&dir).expect("made a run directory");
        Self { instance: Instance::new(name, &dir).expect("a legal instance"), dir }
    }

    pub(crate) fn names(&self, number: u128) -> Names {
        Names::of(&self.instance, &ExecutionId::from_ulid(Ulid::from(number)))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        for execution in reclaim::list(&self.instance).unwrap_or_default() {
            if let Err(error) = reclaim::remove(&Names::of(&self.instance, &execution)) {
                eprintln!("something of {execution} stays: {error:?}");
            }
        }
        let _ = cgroup::remove_instance(&self.instance);
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// The image every test boots.
pub(crate) fn image() -> Arc<Image> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.roost/images");
    match Images::new(&root).get_current("miosa-sandbox") {
        Ok(image) => image,
        Err(error) => panic!("this test boots a real guest: run images/build first ({error})"),
    }
}

/// An image like it in `root`, whose base is not a file system.
pub(crate) fn image_with_an_empty_base(root: &Path) -> Arc<Image> {
    use sha2::{Digest, Sha256};
    use std::os::unix::fs::symlink;
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.roost/images/miosa-sandbox/current");
    let (work, base) = (root.join("broken/work"), vec![0u8; 1 << 20]);
    std::fs::create_dir_all(&work).expect("made");
    let mut body = String::new();
    for (key, file) in [("kernel", "kernel"), ("initramfs", "initramfs"), ("base", "base.erofs")] {
        let contents = match key {
            "base" => base.clone(),
            _ => std::fs::read(source.join(file)).expect("read"),
        };
        std::fs::write(work.join(file), &contents).expect("written");
        let (sha256, bytes) = (hex::encode(Sha256::digest(&contents)), contents.len());
        body += &format!(r#""{key}":{{"file":"{file}","sha256":"{sha256}","bytes":{bytes}}},"#);
    }
    let command_line = &image().command_line;
    body += &format!(r#""guest_protocol":1,"command_line":"{command_line}""#);
    let digest = hex::encode(Sha256::digest(&body));
    let manifest = format!("{{\"template\":\"broken\",\"digest\":\"sha256:{digest}\",{body}}}");
    std::fs::write(work.join("manifest.json"), manifest).expect("written");
    std::fs::rename(&work, root.join("broken").join(&digest[..32])).expect("named");
    symlink(&digest[..32], root.join("broken/current")).expect("linked");
    Images::new(root).get_current("broken").expect("verified")
}

/// Asks again until it is so.
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !is_so() {
        assert!(Instant::now() < end, "{what} within {DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
