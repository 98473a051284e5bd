//! Whether there is a template to boot.

use std::path::{Path, PathBuf};

use anyhow::bail;

/// What `images/build` makes unless told otherwise.
pub const TEMPLATE: &str = "miosa-sandbox";

/// The directory of the template's current image, or a sentence saying how to get one.
pub fn find(image_dir: &Path, template: &str) -> anyhow::Result<PathBuf> {
    let current = image_dir.join(template).join("current");
    if !current.join("manifest.json").exists() {
        bail!(
            "there is no image of {template} in {}: make it with `images/build {template}`",
            image_dir.display()
        );
    }
    Ok(current)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_image_names_the_command_that_makes_it() {
        let error = find(Path::new("/nowhere"), "miosa-sandbox").unwrap_err().to_string();
        assert!(error.ends_with("make it with `images/build miosa-sandbox`"), "{error}");
    }
}
