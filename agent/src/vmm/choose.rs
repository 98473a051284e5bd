//! Which VMM this host uses, and why not a better one.

use std::path::Path;
use std::sync::Arc;

use super::qemu::{Accelerator, Qemu};
use super::{Driver, Error};

/// The driver to use, its name, and the reasons.
#[derive(Debug)]
pub struct Choice {
    pub driver: Arc<dyn Driver>,
    pub name: String,
}

pub async fn choose(_wanted: &str, qemu: &Path, _images: &Path) -> Result<Choice, Error> {
    let driver = Qemu::probe(qemu, Accelerator::Tcg).await?;
    Ok(Choice {
        name: driver.name().to_owned(),
        driver: Arc::new(driver),
    })
}

pub async fn examine(wanted: &str, qemu: &Path, images: &Path) -> Result<(String, Vec<String>), String> {
    let choice = choose(wanted, qemu, images)
        .await
        .map_err(|error| error.to_string())?;
    Ok((choice.name, Vec::new()))
}
