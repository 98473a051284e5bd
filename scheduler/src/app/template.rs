//! The templates that hosts offer.

use std::collections::BTreeSet;

use roost_api::template;
use roost_api::template::Template;
use roost_domain::spec::Size;

use super::{App, Caller, Error, Scope};
use crate::store::host;

pub async fn list(app: &App, caller: &Caller) -> Result<Vec<Template>, Error> {
    caller.require(Scope::SandboxesRead)?;
    let hosts = app.store.read(host::list).await?;
    let offered = hosts.into_iter().filter(|host| host.state == "active").flat_map(|host| host.templates);
    let names: BTreeSet<String> = offered.collect();
    Ok(names.into_iter().map(record).collect())
}

pub async fn get(app: &App, caller: &Caller, id: &str) -> Result<Template, Error> {
    let found = list(app, caller).await?.into_iter().find(|template| template.id == id);
    found.ok_or(Error::NotFound { what: "template" })
}

fn record(id: String) -> Template {
    Template { name: id.clone(), id, product: "sandbox".to_owned(), aliases: Vec::new(), sizes: sizes() }
}

fn sizes() -> Vec<template::Size> {
    let shown = |size: &Size| {
        let geometry = size.geometry();
        template::Size {
            name: size.text().to_owned(),
            cpu_count: geometry.vcpus,
            memory_mb: geometry.memory_mib,
            disk_size_mb: geometry.disk_mib,
        }
    };
    Size::ALL.iter().map(shown).collect()
}
