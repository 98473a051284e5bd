//! Images in a scratch directory: found, verified, refused when touched, removed when unpinned.

use super::*;
use std::os::unix::fs::{PermissionsExt, symlink};

const TEMPLATE: &str = "miosa-sandbox";

fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// Writes an image whose base holds `base`, makes it current, and returns its digest.
fn write_image(root: &Path, base: &str) -> String {
    let parts = [
        ("kernel", "kernel", "a kernel"),
        ("initramfs", "initramfs", "an init"),
        ("base", "base.erofs", base),
    ];
    let mut body = String::new();
    for (key, file, contents) in parts {
        let (sha256, bytes) = (sha256(contents.as_bytes()), contents.len());
        body += &format!(r#""{key}":{{"file":"{file}","sha256":"{sha256}","bytes":{bytes}}},"#);
    }
    body += r#""guest_protocol":1,"command_line":"console=ttyS0 quiet""#;
    let digest = format!("sha256:{}", sha256(body.as_bytes()));
    let name = directory_name(&digest).expect("a digest").to_owned();
    let dir = root.join(TEMPLATE).join(&name);
    fs::create_dir_all(&dir).expect("made");
    for (_, file, contents) in parts {
        fs::write(dir.join(file), contents).expect("written");
    }
    let manifest = format!("{{\"template\":\"{TEMPLATE}\",\"digest\":\"{digest}\",{body}}}\n");
    fs::write(dir.join(MANIFEST), manifest).expect("written");
    let current = root.join(TEMPLATE).join(CURRENT);
    let _ = fs::remove_file(&current);
    symlink(name, current).expect("linked");
    digest
}

fn path_of(root: &Path, digest: &str, file: &str) -> PathBuf {
    root.join(TEMPLATE).join(directory_name(digest).expect("a digest")).join(file)
}

#[test]
fn the_current_image_is_found_and_verified_once() {
    let root = tempfile::tempdir().expect("a directory");
    let digest = write_image(root.path(), "base one");
    let images = Images::new(root.path());
    let first = images.get_current(TEMPLATE).expect("verified");
    assert_eq!((first.digest.as_str(), first.guest_protocol), (digest.as_str(), 1));
    assert!(Arc::ptr_eq(&first, &images.get(TEMPLATE, &digest).expect("verified")));
    let listed = images.list().expect("listed");
    assert_eq!(listed, [Template { name: TEMPLATE.to_owned(), digest, guest_protocol: 1 }]);
}

#[test]
fn a_touched_file_is_refused_even_after_it_was_verified() {
    let root = tempfile::tempdir().expect("a directory");
    let digest = write_image(root.path(), "base one");
    let images = Images::new(root.path());
    images.get(TEMPLATE, &digest).expect("verified");
    fs::write(path_of(root.path(), &digest, "base.erofs"), "base two").expect("written");
    let error = images.get(TEMPLATE, &digest).expect_err("touched");
    assert!(matches!(error, Error::Corrupt { .. }), "{error:?}");
}

#[test]
fn a_manifest_that_says_something_else_than_its_digest_is_refused() {
    let root = tempfile::tempdir().expect("a directory");
    let digest = write_image(root.path(), "base one");
    let path = path_of(root.path(), &digest, MANIFEST);
    let text = fs::read_to_string(&path).expect("read").replace("quiet", "init=/x");
    fs::write(&path, text).expect("written");
    let error = Images::new(root.path()).get(TEMPLATE, &digest).expect_err("changed");
    assert!(matches!(error, Error::Manifest { source: manifest::Error::Digest, .. }), "{error:?}");
}

#[test]
fn files_that_vmms_could_not_open_are_refused() {
    let root = tempfile::tempdir().expect("a directory");
    let digest = write_image(root.path(), "base one");
    let kernel = path_of(root.path(), &digest, "kernel");
    fs::set_permissions(&kernel, fs::Permissions::from_mode(0o600)).expect("changed");
    let error = Images::new(root.path()).get_current(TEMPLATE).expect_err("unreadable");
    assert!(matches!(error, Error::Unreadable { .. }), "{error:?}");
}

#[test]
fn only_images_without_a_pin_are_removed() {
    let root = tempfile::tempdir().expect("a directory");
    let digests = ["one", "two", "three"].map(|base| write_image(root.path(), base));
    let images = Images::new(root.path());
    let removed = images.remove_unpinned(&BTreeSet::from([digests[0].clone()])).expect("removed");
    assert_eq!(removed, [path_of(root.path(), &digests[1], "")]);
    images.get(TEMPLATE, &digests[0]).expect("pinned");
    images.get(TEMPLATE, &digests[2]).expect("current");
    let gone = images.get(TEMPLATE, &digests[1]).expect_err("removed");
    assert!(matches!(gone, Error::NoImage { .. }), "{gone:?}");
}

#[test]
fn names_that_are_not_names_are_refused() {
    let images = Images::new("/nonexistent");
    for name in ["", "../etc", "a/b", "A", "-a"] {
        assert!(matches!(images.get_current(name), Err(Error::TemplateName(_))), "{name}");
    }
    assert!(matches!(images.get("a", "sha256:../.."), Err(Error::DigestText(_))));
    assert!(matches!(images.get_current("absent"), Err(Error::NoTemplate(_))));
}
