//! What an image's `manifest.json` says. Pure.
//!
//! The digest covers the manifest's own text from the first part to the last setting, so it fixes every file
//! and the kernel's command line.

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("not the expected JSON")]
    Json(#[from] serde_json::Error),
    #[error("its digest does not cover what it says")]
    Digest,
    #[error("\"{0}\" is not the plain name of a file")]
    FileName(String),
    #[error("\"{0}\" is not a SHA-256 in lower-case hex")]
    Sha256(String),
    #[error("the kernel's command line has characters that are not printable ASCII")]
    CommandLine,
}

/// One file of an image.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Part {
    pub file: String,
    pub sha256: String,
    pub bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Manifest {
    pub template: String,
    pub digest: String,
    pub kernel: Part,
    pub initramfs: Part,
    pub base: Part,
    pub guest_protocol: u32,
    pub command_line: String,
}

pub(super) fn is_sha256(hex: &str) -> bool {
    hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

impl Manifest {
    pub fn parse(text: &str) -> Result<Self, Error> {
        let manifest: Self = serde_json::from_str(text)?;
        for part in [&manifest.kernel, &manifest.initramfs, &manifest.base] {
            if part.file.is_empty() || part.file.starts_with('.') || part.file.contains('/') {
                return Err(Error::FileName(part.file.clone()));
            }
            if !is_sha256(&part.sha256) {
                return Err(Error::Sha256(part.sha256.clone()));
            }
        }
        if !manifest.command_line.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
            return Err(Error::CommandLine);
        }
        let head = format!("{{\"template\":\"{}\",\"digest\":\"{}\",", manifest.template, manifest.digest);
        let covered = text.trim_end().strip_prefix(&head).and_then(|rest| rest.strip_suffix('}'));
        let covered = covered.ok_or(Error::Digest)?;
        if manifest.digest != format!("sha256:{}", hex::encode(Sha256::digest(covered))) {
            return Err(Error::Digest);
        }
        Ok(manifest)
    }
}
