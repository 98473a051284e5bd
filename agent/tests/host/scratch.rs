//! An instance of a test's own, removed with everything that carries its name.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use roost_agent::host::names::{Instance, Names};
use roost_agent::host::{cgroup, netns};
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
        assert!(
            nix::unistd::geteuid().is_root(),
            "this test needs root: run the suite as root"
        );
        let name = format!("t{}{name}", std::process::id());
        let dir = PathBuf::from("/run").join(&name);
        std::fs::create_dir_all(&dir).expect("made a run directory");
        Self {
            instance: Instance::new(name, &dir).expect("a legal instance"),
            dir,
        }
    }

    pub(crate) fn names(&self, number: u128) -> Names {
        Names::of(&self.instance, &ExecutionId::from_ulid(Ulid::from(number)))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let began = Instant::now();
        for execution in cgroup::list(&self.instance).unwrap_or_default() {
            let path = Names::of(&self.instance, &execution).cgroup;
            while let Ok(Some(group)) = cgroup::find(&path) {
                let _ = group.kill();
                if cgroup::remove(&path).is_ok() || began.elapsed() > DEADLINE {
                    break;
                }
                std::thread::yield_now();
            }
        }
        let _ = cgroup::remove_instance(&self.instance);
        for execution in netns::list(&self.instance).unwrap_or_default() {
            let _ = netns::remove(&Names::of(&self.instance, &execution).netns);
        }
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

/// Asks again until it is so.
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !is_so() {
        assert!(Instant::now() < end, "{what} within {DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
