//! Files of the authorities: directories 0700, keys 0600, each written whole or not at all.

use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use super::Error;

/// A larger file is none of ours.
const FILE_BYTES_MAX: u64 = 64 * 1024;

fn failed<'a>(step: &'static str, path: &'a Path) -> impl Fn(std::io::Error) -> Error + 'a {
    move |source| Error::File { step, path: path.to_owned(), source }
}

pub(crate) fn ensure_directory(path: &Path) -> Result<(), Error> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(failed("make the directory", path))?;
    let mode = std::fs::Permissions::from_mode(0o700);
    std::fs::set_permissions(path, mode).map_err(failed("protect the directory", path))
}

pub(super) fn read(path: &Path) -> Result<String, Error> {
    let about = std::fs::metadata(path).map_err(failed("look at", path))?;
    if about.len() > FILE_BYTES_MAX {
        return Err(Error::NotOurs { path: path.to_owned() });
    }
    std::fs::read_to_string(path).map_err(failed("read", path))
}

/// For keys: readable by the owner alone from the first byte on.
pub(crate) fn write_private(path: &Path, contents: &[u8]) -> Result<(), Error> {
    write(path, contents, 0o600)
}

pub(super) fn write_public(path: &Path, contents: &[u8]) -> Result<(), Error> {
    write(path, contents, 0o644)
}

fn write(path: &Path, contents: &[u8], mode: u32) -> Result<(), Error> {
    let unfinished = path.with_extension("unfinished");
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(mode);
    let written = options.open(&unfinished).and_then(|mut file| {
        file.write_all(contents)?;
        file.sync_all()
    });
    written.map_err(failed("write", &unfinished))?;
    std::fs::rename(&unfinished, path).map_err(failed("place", path))?;
    let directory = path.parent().unwrap_or(Path::new("/"));
    let synced = std::fs::File::open(directory).and_then(|directory| directory.sync_all());
    synced.map_err(failed("sync the directory of", path))
}

/// Names (without the ending) of the files with one ending.
pub(super) fn list_names(directory: &Path, ending: &str) -> Result<Vec<String>, Error> {
    let entries = std::fs::read_dir(directory).map_err(failed("list", directory))?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed("list", directory))?.path();
        if path.extension().is_some_and(|found| found == ending)
            && let Some(name) = path.file_stem().and_then(|name| name.to_str())
        {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}
