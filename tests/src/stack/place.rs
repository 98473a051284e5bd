//! Where a stack lives: its folder, its run directory, its name on the host, its binaries.
//!
//! Pure but for looking at paths. Everything a stack makes is below one of two directories or carries its instance
//! name, so that what it leaves can be found (`leftover`).

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use sha2::{Digest, Sha256};

/// First of the user ids VMMs run as, and how many each stack takes.
const VMM_UID_FIRST: u32 = 60_610;
const VMM_UIDS: u32 = 20;
const VMM_UID_SLICES: u32 = 28;
/// Names a directory with binaries of another build, to be used instead.
const BINARIES_VARIABLE: &str = "ROOST_TEST_BINARIES";

#[derive(Debug, Clone)]
pub struct Place {
    /// Prefix of every name on the host.
    pub instance: String,
    /// Databases, disks, logs, settings.
    pub root: PathBuf,
    /// Sockets, and the directories of the unprivileged processes: a clone may lie where their uids cannot look.
    pub run_dir: PathBuf,
    pub image_dir: PathBuf,
    pub binaries: PathBuf,
}

impl Place {
    /// The one stack of a clone that `scripts/quickstart` runs.
    pub fn of_clone(clone: &Path) -> anyhow::Result<Self> {
        let clone = clone.canonicalize().with_context(|| format!("no clone at {}", clone.display()))?;
        let digest = hex::encode(Sha256::digest(clone.as_os_str().as_encoded_bytes()));
        Self::new(&clone, &format!("roost-{}", &digest[..8]), clone.join(".roost/stack"))
    }

    /// A stack of its own for the test that asks, in the same clone.
    pub fn of_test(clone: &Path, name: &str) -> anyhow::Result<Self> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
        let seed = format!("{name} {} {}", std::process::id(), now.as_nanos());
        let digest = hex::encode(Sha256::digest(seed));
        let instance = format!("roost-t{}", &digest[..8]);
        let root = clone.join("target/stacks").join(format!("{name}-{}", &digest[..8]));
        Self::new(clone, &instance, root)
    }

    fn new(clone: &Path, instance: &str, root: PathBuf) -> anyhow::Result<Self> {
        Ok(Self {
            instance: instance.to_owned(),
            root,
            run_dir: Path::new("/run").join(instance),
            image_dir: clone.join(".roost/images"),
            binaries: find_binaries()?,
        })
    }

    pub fn binary(&self, name: &str) -> anyhow::Result<PathBuf> {
        binary_in(&self.binaries, name)
    }

    pub fn settings(&self, process: &str) -> PathBuf {
        self.root.join(format!("{process}.toml"))
    }

    pub fn log(&self, process: &str) -> PathBuf {
        self.root.join("logs").join(format!("{process}.log"))
    }

    /// The certificate by which hosts know the scheduler.
    pub fn fleet_root(&self) -> PathBuf {
        self.root.join("scheduler/pki/fleet-root.pem")
    }

    /// The root of the development certificates of previews.
    pub fn preview_root(&self) -> PathBuf {
        self.root.join("scheduler/pki/preview-root.pem")
    }

    pub fn join_token(&self) -> PathBuf {
        self.root.join("join-token")
    }

    /// First and last of the user ids for VMMs. Stacks that run at once rarely share them.
    pub fn vmm_uids(&self) -> (u32, u32) {
        let digest = Sha256::digest(&self.instance);
        let slice = u32::from(digest[0]) % VMM_UID_SLICES;
        let first = VMM_UID_FIRST + slice * VMM_UIDS;
        (first, first + VMM_UIDS - 1)
    }
}

/// A binary of the product, of the same build as this program.
pub fn binary(name: &str) -> anyhow::Result<PathBuf> {
    binary_in(&find_binaries()?, name)
}

fn binary_in(directory: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let path = directory.join(name);
    ensure!(
        path.exists(),
        "{} is not built: run `cargo build --workspace --bins` (or ./scripts/quickstart, which does)",
        path.display()
    );
    Ok(path)
}

/// The directory cargo puts binaries in: the one this program is in, or above it for a test program.
fn find_binaries() -> anyhow::Result<PathBuf> {
    if let Some(directory) = std::env::var_os(BINARIES_VARIABLE).filter(|directory| !directory.is_empty()) {
        let directory = PathBuf::from(directory);
        return directory.canonicalize().with_context(|| format!("no directory {}", directory.display()));
    }
    let own = std::env::current_exe()?;
    let directory = own.parent().context("this program is in no directory")?;
    let directory = if directory.ends_with("deps") { directory.parent() } else { Some(directory) };
    Ok(directory.context("this program is in no target directory")?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_and_the_same_for_a_clone_but_never_for_two_tests() {
        let clone = tempdir();
        let place = Place::of_clone(&clone).unwrap();
        assert_eq!(place.instance, Place::of_clone(&clone).unwrap().instance);
        assert!(place.instance.len() <= 24 && place.run_dir.as_os_str().len() < 32);
        let (one, two) = (Place::of_test(&clone, "x").unwrap(), Place::of_test(&clone, "x").unwrap());
        assert_ne!(one.instance, two.instance);
        assert_ne!(one.root, two.root);
    }

    fn tempdir() -> PathBuf {
        std::env::temp_dir()
    }

    #[test]
    fn vmm_uids_stay_in_the_range_of_the_product() {
        for number in 0..500 {
            let mut place = Place::of_clone(&tempdir()).unwrap();
            place.instance = format!("roost-{number}");
            let (first, last) = place.vmm_uids();
            assert!(first >= 60_610 && last <= 61_183 && first < last);
        }
    }
}
