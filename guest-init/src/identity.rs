//! What makes one guest different from another that was restored from the same snapshot: names and ids.
//!
//! Owns the files on a tmpfs that lie over the image's `/etc/hostname`, `/etc/hosts`, `/etc/machine-id`,
//! `/etc/resolv.conf` and the kernel's boot id. They are mounted once at boot and rewritten in place afterwards,
//! so that programs which hold them open see the change.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::mount::{self, overmount};
use crate::net::GATEWAY;

const DIRECTORY: &str = "/run/roost/identity";
const HOST_NAME_BYTES_MAX: usize = 63;

/// Each file's name in `DIRECTORY` and the path it lies over.
const FILES: [(&str, &str); 5] = [
    ("resolv.conf", "/etc/resolv.conf"),
    ("hosts", "/etc/hosts"),
    ("hostname", "/etc/hostname"),
    ("machine-id", "/etc/machine-id"),
    ("boot_id", "/proc/sys/kernel/random/boot_id"),
];

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the host name must be 1 to {HOST_NAME_BYTES_MAX} letters, digits and hyphens")]
    HostName,
    #[error("the machine id must be 32 hexadecimal digits")]
    MachineId,
    #[error("the boot id must be a UUID")]
    BootId,
    #[error("cannot write {0}")]
    Write(PathBuf, #[source] io::Error),
    #[error(transparent)]
    Mount(#[from] mount::Error),
    #[error("cannot set the host name")]
    SetHostName(#[source] nix::Error),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    host_name: String,
    machine_id: String,
    boot_id: String,
}

impl Identity {
    pub fn new(host_name: &str, machine_id: &str, boot_id: &str) -> Result<Self, Error> {
        let label = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if host_name.is_empty() || host_name.len() > HOST_NAME_BYTES_MAX || !host_name.chars().all(label) {
            return Err(Error::HostName);
        }
        if machine_id.len() != 32 || !machine_id.chars().all(|c| c.is_ascii_hexdigit()) {
            return Err(Error::MachineId);
        }
        let groups: Vec<usize> = boot_id.split('-').map(str::len).collect();
        if groups != [8, 4, 4, 4, 12] || !boot_id.chars().all(|c| c.is_ascii_hexdigit() || c == '-') {
            return Err(Error::BootId);
        }
        Ok(Self {
            host_name: host_name.into(),
            machine_id: machine_id.to_lowercase(),
            boot_id: boot_id.into(),
        })
    }

    /// What a guest has between boot and Claim.
    fn unclaimed() -> Self {
        Self {
            host_name: "unclaimed".into(),
            machine_id: "0".repeat(32),
            boot_id: "00000000-0000-0000-0000-000000000000".into(),
        }
    }

    fn contents(&self, file: &str) -> String {
        match file {
            "resolv.conf" => format!("nameserver {GATEWAY}\n"),
            "hosts" => format!(
                "127.0.0.1 localhost\n127.0.1.1 {}\n::1 localhost ip6-localhost ip6-loopback\n",
                self.host_name
            ),
            "hostname" => format!("{}\n", self.host_name),
            "machine-id" => format!("{}\n", self.machine_id),
            _ => format!("{}\n", self.boot_id),
        }
    }
}

/// Lays the files over the image's, once at boot.
pub fn ensure_mounted() -> Result<(), Error> {
    fs::create_dir_all(DIRECTORY).map_err(|error| Error::Write(DIRECTORY.into(), error))?;
    apply(&Identity::unclaimed())?;
    for (file, target) in FILES {
        overmount(&Path::new(DIRECTORY).join(file), Path::new(target))?;
    }
    Ok(())
}

/// Gives the guest its names and ids.
pub fn apply(identity: &Identity) -> Result<(), Error> {
    nix::unistd::sethostname(&identity.host_name).map_err(Error::SetHostName)?;
    for (file, _) in FILES {
        let path = Path::new(DIRECTORY).join(file);
        fs::write(&path, identity.contents(file)).map_err(|error| Error::Write(path, error))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE_ID: &str = "0123456789abcdef0123456789abcdef";
    const BOOT_ID: &str = "2cbb51a3-1bf2-4fbc-8e0d-4a2b0d5c6e7f";

    #[test]
    fn only_well_formed_identities_are_taken() {
        assert!(Identity::new("sbx-01", MACHINE_ID, BOOT_ID).is_ok());
        for host_name in ["", "a b", "a\nb", "a.b", &"a".repeat(64)] {
            assert!(
                matches!(Identity::new(host_name, MACHINE_ID, BOOT_ID), Err(Error::HostName)),
                "{host_name:?}"
            );
        }
        assert!(matches!(Identity::new("a", &MACHINE_ID[1..], BOOT_ID), Err(Error::MachineId)));
        for boot_id in
            ["", MACHINE_ID, "2cbb51a3-1bf2-4fbc-8e0d-4a2b0d5c6e7g", "2cbb51a31bf2-4fbc-8e0d-4a2b-0d5c6e7f"]
        {
            assert!(matches!(Identity::new("a", MACHINE_ID, boot_id), Err(Error::BootId)), "{boot_id:?}");
        }
    }

    #[test]
    fn the_files_say_what_the_guest_is() {
        let identity = Identity::new("sbx-01", MACHINE_ID, BOOT_ID).expect("valid");
        assert_eq!(identity.contents("resolv.conf"), "nameserver 10.0.0.1\n");
        assert_eq!(identity.contents("machine-id"), format!("{MACHINE_ID}\n"));
        assert!(identity.contents("hosts").contains("127.0.1.1 sbx-01\n"));
    }
}
