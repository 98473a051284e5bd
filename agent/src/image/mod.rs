//! Guest images on this host: read, verified, pinned.
//!
//! An image is a directory `<images>/<template>/<first 32 hex of the digest>` with a manifest and the files it
//! names; `<images>/<template>/current` points to the one that new sandboxes get. Every file is hashed once and
//! then held open, so what was verified is what a VMM gets, whatever happens to the names. Builds nothing and
//! fetches nothing.

mod manifest;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest as _, Sha256};

pub use manifest::{Manifest, Part};

use crate::host::file;

const MANIFEST: &str = "manifest.json";
const CURRENT: &str = "current";
const MAX_MANIFEST_BYTES: u64 = 64 * 1024;
/// Of the digest, in the directory's name.
const NAME_HEX: usize = 32;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("template name \"{0}\" is not made of lower-case letters, digits and inner dashes")]
    TemplateName(String),
    #[error("\"{0}\" is not an image digest")]
    DigestText(String),
    #[error("there is no template {0} on this host")]
    NoTemplate(String),
    #[error("image {digest} of template {template} is not on this host")]
    NoImage { template: String, digest: String },
    #[error("{step} {path}")]
    File { step: &'static str, path: PathBuf, source: io::Error },
    #[error("manifest {path}")]
    Manifest { path: PathBuf, source: manifest::Error },
    #[error("manifest {path} is about {found}")]
    WrongPlace { path: PathBuf, found: String },
    #[error("{path} differs from its manifest")]
    Corrupt { path: PathBuf },
    /// VMMs run under uids of their own and open kernel and initramfs again.
    #[error("{path} must be readable for all")]
    Unreadable { path: PathBuf },
    #[error("removing image {path}")]
    Remove { path: PathBuf, source: file::Error },
}

fn at(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { step, path, source }
}

/// A verified image with its files held open.
#[derive(Debug)]
pub struct Image {
    pub template: String,
    /// `sha256:` and 64 hex digits.
    pub digest: String,
    /// Generation of the guest protocol its init speaks.
    pub guest_protocol: u32,
    /// Of the guest's kernel.
    pub command_line: String,
    pub kernel: File,
    pub initramfs: File,
    pub base: File,
    stamps: Vec<(PathBuf, Stamp)>,
}

/// Changes when somebody touches a verified file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            changed: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

impl Image {
    /// An image without contents, for VMMs that look at none.
    #[cfg(any(test, feature = "fake-vmm"))]
    pub fn blank(template: &str, digest: &str) -> io::Result<Self> {
        let nothing = || File::open("/dev/null");
        Ok(Self {
            template: template.to_owned(),
            digest: digest.to_owned(),
            guest_protocol: 1,
            command_line: String::new(),
            kernel: nothing()?,
            initramfs: nothing()?,
            base: nothing()?,
            stamps: Vec::new(),
        })
    }

    /// The same image whose kernel is told more. Its digest is kept, so it must not be saved from.
    pub(crate) fn with_command_line(&self, more: &str) -> Result<Self, Error> {
        let share = |file: &File| file.try_clone().map_err(at("sharing", Path::new(&self.template)));
        Ok(Self {
            template: self.template.clone(),
            digest: self.digest.clone(),
            guest_protocol: self.guest_protocol,
            command_line: format!("{} {more}", self.command_line),
            kernel: share(&self.kernel)?,
            initramfs: share(&self.initramfs)?,
            base: share(&self.base)?,
            stamps: Vec::new(),
        })
    }

    fn is_unchanged(&self) -> bool {
        let same =
            |(path, stamp): &(PathBuf, Stamp)| fs::metadata(path).is_ok_and(|now| Stamp::of(&now) == *stamp);
        self.stamps.iter().all(same)
    }
}

/// One template of this host and the image that new sandboxes of it get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    pub name: String,
    pub digest: String,
    pub guest_protocol: u32,
}

/// All images below one directory. Blocks: hashing a new image takes a moment.
#[derive(Debug)]
pub struct Images {
    root: PathBuf,
    verified: Mutex<BTreeMap<PathBuf, Arc<Image>>>,
}

impl Images {
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), verified: Mutex::default() }
    }

    /// Every template with a current image. Manifests are read, files are not hashed.
    pub fn list(&self) -> Result<Vec<Template>, Error> {
        let mut templates = Vec::new();
        for name in names_in(&self.root)? {
            if check_template(&name).is_err() {
                continue;
            }
            let dir = self.root.join(&name).join(CURRENT);
            if dir.join(MANIFEST).exists() {
                let manifest = read_manifest(&dir, &name)?;
                let Manifest { digest, guest_protocol, .. } = manifest;
                templates.push(Template { name, digest, guest_protocol });
            }
        }
        templates.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(templates)
    }

    /// The image that new sandboxes of a template get, verified.
    pub fn get_current(&self, template: &str) -> Result<Arc<Image>, Error> {
        check_template(template)?;
        let link = self.root.join(template).join(CURRENT);
        let dir = match fs::canonicalize(&link) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::NoTemplate(template.to_owned()));
            }
            other => other.map_err(at("following", &link))?,
        };
        self.verify(&dir, template)
    }

    /// The image a row pins, verified.
    pub fn get(&self, template: &str, digest: &str) -> Result<Arc<Image>, Error> {
        check_template(template)?;
        let dir = self.root.join(template).join(directory_name(digest)?);
        if !dir.join(MANIFEST).exists() {
            return Err(Error::NoImage { template: template.to_owned(), digest: digest.to_owned() });
        }
        let image = self.verify(&dir, template)?;
        if image.digest == digest {
            return Ok(image);
        }
        Err(Error::WrongPlace { path: dir.join(MANIFEST), found: image.digest.clone() })
    }

    /// Removes every image that no row pins and that is not current. Returns the directories removed.
    pub fn remove_unpinned(&self, pinned: &BTreeSet<String>) -> Result<Vec<PathBuf>, Error> {
        let mut keep = BTreeSet::new();
        for digest in pinned {
            keep.insert(directory_name(digest)?.to_owned());
        }
        let mut removed = Vec::new();
        for template in names_in(&self.root)? {
            if check_template(&template).is_err() {
                continue;
            }
            let dir = self.root.join(&template);
            let current = fs::canonicalize(dir.join(CURRENT)).ok();
            for name in names_in(&dir)? {
                let path = dir.join(&name);
                let is_image = name.len() == NAME_HEX && name.bytes().all(|byte| byte.is_ascii_hexdigit());
                if is_image && !keep.contains(&name) && fs::canonicalize(&path).ok() != current {
                    file::remove_tree(&path)
                        .map_err(|source| Error::Remove { path: path.clone(), source })?;
                    self.verified.lock().unwrap_or_else(PoisonError::into_inner).remove(&path);
                    removed.push(path);
                }
            }
        }
        Ok(removed)
    }

    fn verify(&self, dir: &Path, template: &str) -> Result<Arc<Image>, Error> {
        // Held while hashing, so that ten creates at once hash a new image once.
        let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(image) = verified.get(dir).filter(|image| image.is_unchanged()) {
            return Ok(Arc::clone(image));
        }
        let manifest = read_manifest(dir, template)?;
        if !dir.ends_with(directory_name(&manifest.digest)?) {
            return Err(Error::WrongPlace { path: dir.join(MANIFEST), found: manifest.digest });
        }
        let mut stamps = Vec::new();
        let mut open = |part: &Part| open_part(dir, part, &mut stamps);
        let image = Arc::new(Image {
            kernel: open(&manifest.kernel)?,
            initramfs: open(&manifest.initramfs)?,
            base: open(&manifest.base)?,
            template: manifest.template,
            digest: manifest.digest,
            guest_protocol: manifest.guest_protocol,
            command_line: manifest.command_line,
            stamps,
        });
        verified.insert(dir.to_owned(), Arc::clone(&image));
        Ok(image)
    }
}

fn check_template(name: &str) -> Result<(), Error> {
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let dashed = name.starts_with('-') || name.ends_with('-');
    if name.is_empty() || name.len() > 64 || dashed || !name.bytes().all(legal) {
        return Err(Error::TemplateName(name.to_owned()));
    }
    Ok(())
}

fn directory_name(digest: &str) -> Result<&str, Error> {
    let hex = digest.strip_prefix("sha256:").filter(|hex| manifest::is_sha256(hex));
    hex.map(|hex| &hex[..NAME_HEX]).ok_or_else(|| Error::DigestText(digest.to_owned()))
}

fn names_in(dir: &Path) -> Result<Vec<String>, Error> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(at("listing", dir))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry.map_err(at("listing", dir))?.file_name().into_string());
    }
    Ok(names)
}

fn read_manifest(dir: &Path, template: &str) -> Result<Manifest, Error> {
    let path = dir.join(MANIFEST);
    let size = fs::metadata(&path).map_err(at("looking at", &path))?.len();
    if size > MAX_MANIFEST_BYTES {
        return Err(Error::Corrupt { path });
    }
    let text = fs::read_to_string(&path).map_err(at("reading", &path))?;
    let manifest = Manifest::parse(&text).map_err(|source| Error::Manifest { path: path.clone(), source })?;
    if manifest.template != template {
        return Err(Error::WrongPlace { path, found: manifest.template });
    }
    Ok(manifest)
}

fn open_part(dir: &Path, part: &Part, stamps: &mut Vec<(PathBuf, Stamp)>) -> Result<File, Error> {
    let path = dir.join(&part.file);
    let mut file = File::open(&path).map_err(at("opening", &path))?;
    let metadata = file.metadata().map_err(at("looking at", &path))?;
    if metadata.len() != part.bytes {
        return Err(Error::Corrupt { path });
    }
    if metadata.mode() & 0o004 == 0 {
        return Err(Error::Unreadable { path });
    }
    let mut hash = Sha256::new();
    io::copy(&mut file, &mut HashWriter(&mut hash)).map_err(at("reading", &path))?;
    if hex::encode(hash.finalize()) != part.sha256 {
        return Err(Error::Corrupt { path });
    }
    stamps.push((path, Stamp::of(&metadata)));
    Ok(file)
}

struct HashWriter<'a>(&'a mut Sha256);

impl io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
