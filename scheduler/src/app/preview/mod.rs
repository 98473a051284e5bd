//! Previews: published ports of a sandbox. Private unless somebody says otherwise; `expose` says so.

use roost_api::Timestamp;
use roost_api::preview::{CreatePreview, ExposePort, ExposedPort, PatchPreview, Preview, Visibility};
use roost_domain::host_name::Host;
use roost_domain::id::PreviewId;
use roost_domain::limits::is_publishable_port;
use roost_domain::preview_host::{Key, PreviewHost, Target};
use roost_domain::slug::Slug;

use super::label::Attribution;
use super::sandbox::Row as SandboxRow;
use super::{App, Brand, Caller, Error, Scope, audit, sandbox, text};
use crate::store::Tx;
use crate::store::preview::{self as table, Preview as Row};

pub mod share;

/// What `expose` and preview tokens mean without a port.
pub const DEFAULT_PORT: u32 = 3000;
const MAX_PREVIEWS: usize = 100;

/// Publishes a port, or answers the preview it already has, whose visibility stays. True if it was made now.
pub async fn create(
    app: &App,
    caller: &Caller,
    reference: &str,
    request: CreatePreview,
) -> Result<(Preview, bool), Error> {
    caller.require(Scope::PreviewsWrite)?;
    let port = check_port(request.port)?;
    let name = request.name.as_deref().map(|name| text::check_name("name", name)).transpose()?;
    let visibility = request.visibility.unwrap_or(Visibility::Private);
    let draft = Draft::new(app, caller, port, name.unwrap_or_default(), visibility)?;
    let (caller, reference) = (caller.clone(), reference.to_owned());
    let made = app.store.decide(move |tx| {
        let sandbox = find_live_sandbox(tx, &caller, &reference)?;
        let (row, made) = ensure(tx, &sandbox, &draft)?;
        Ok::<_, Error>((sandbox, row, made))
    });
    let (sandbox, row, made) = made.await?;
    app.fleet.note_change();
    Ok((record(&app.brand, &sandbox, row)?, made))
}

/// Makes a port public: anybody who knows the address sees it.
pub async fn expose(
    app: &App,
    caller: &Caller,
    reference: &str,
    request: ExposePort,
) -> Result<ExposedPort, Error> {
    caller.require(Scope::PreviewsWrite)?;
    let port = check_port(request.port.unwrap_or(DEFAULT_PORT))?;
    let draft = Draft::new(app, caller, port, String::new(), Visibility::Public)?;
    let (caller, reference, now_us) = (caller.clone(), reference.to_owned(), app.now_us());
    let exposed = app.store.decide(move |tx| {
        let sandbox = find_live_sandbox(tx, &caller, &reference)?;
        let (mut row, made) = ensure(tx, &sandbox, &draft)?;
        if !made && row.visibility != word(Visibility::Public) {
            table::set_visibility(tx, &row.id, word(Visibility::Public), now_us)?;
            draft
                .published
                .clone()
                .on(&row.id)
                .about(&Attribution::from(&sandbox))
                .with("port", &row.port)
                .insert(tx)?;
            row.visibility = word(Visibility::Public).to_owned();
        }
        Ok::<_, Error>((sandbox, row))
    });
    let (sandbox, row) = exposed.await?;
    app.fleet.note_change();
    let url = url(&app.brand, &sandbox, &row)?;
    Ok(ExposedPort {
        preview_url: url.clone(),
        url,
        preview_id: row.id,
        port,
        visibility: Visibility::Public,
        url_class: "public_preview".to_owned(),
        stable_for_embedding: true,
    })
}

/// A preview in the making; everything random and timed is fixed before the transaction.
#[derive(Debug, Clone)]
struct Draft {
    id: String,
    port: u16,
    key: Key,
    name: String,
    visibility: Visibility,
    now_us: i64,
    created: audit::Row,
    published: audit::Row,
    actor: String,
}

impl Draft {
    fn new(
        app: &App,
        caller: &Caller,
        port: u16,
        name: String,
        visibility: Visibility,
    ) -> Result<Self, Error> {
        let mut random = [0u8; 8];
        getrandom::fill(&mut random).map_err(|source| Error::internal("make a preview's key", source))?;
        let (id, now_us) = (roost_daemon::ids::fresh::<PreviewId>().to_string(), app.now_us());
        Ok(Self {
            created: audit::row(caller, now_us, "preview.created", "preview", &id),
            published: audit::row(caller, now_us, "preview.published", "preview", &id),
            actor: caller.actor(),
            key: Key::from_random(random),
            id,
            port,
            name,
            visibility,
            now_us,
        })
    }
}

/// The preview of a port, made if there is none. True if it was made now.
fn ensure(tx: &mut Tx<'_>, sandbox: &SandboxRow, draft: &Draft) -> Result<(Row, bool), Error> {
    if let Some(found) = table::find_by_port(tx, &sandbox.id, draft.port)? {
        return Ok((found, false));
    }
    if table::list(tx, &sandbox.id)?.len() >= MAX_PREVIEWS {
        return Err(Error::invalid("port", format!("a sandbox has at most {MAX_PREVIEWS} previews")));
    }
    let row = Row {
        id: draft.id.clone(),
        tenant_id: sandbox.tenant_id.clone(),
        sandbox_id: sandbox.id.clone(),
        port: draft.port.into(),
        key: draft.key.as_str().to_owned(),
        name: draft.name.clone(),
        visibility: word(draft.visibility).to_owned(),
        share_generation: 1,
        actor: draft.actor.clone(),
        created_us: draft.now_us,
        updated_us: draft.now_us,
        deleted_us: None,
    };
    if !table::insert(tx, &row)? {
        let problem = format!("port {} or its random key was taken in this moment", draft.port);
        return Err(Error::internal("publish a port", problem));
    }
    let about = Attribution::from(sandbox);
    draft
        .created
        .clone()
        .about(&about)
        .with("port", &row.port)
        .with("visibility", &row.visibility)
        .insert(tx)?;
    if draft.visibility == Visibility::Public {
        draft.published.clone().about(&about).with("port", &row.port).insert(tx)?;
    }
    Ok((row, true))
}

pub async fn list(app: &App, caller: &Caller, reference: &str) -> Result<Vec<Preview>, Error> {
    caller.require(Scope::SandboxesRead)?;
    let sandbox = sandbox::row(app, caller, reference).await?;
    let id = sandbox.id.clone();
    let rows = app.store.read(move |tx| table::list(tx, &id)).await?;
    rows.into_iter().map(|row| record(&app.brand, &sandbox, row)).collect()
}

pub async fn get(app: &App, caller: &Caller, reference: &str, id: String) -> Result<Preview, Error> {
    caller.require(Scope::SandboxesRead)?;
    let place = Place { sandbox: Some(reference.to_owned()), preview: id };
    let (sandbox, row) = find(app, caller, place).await?;
    record(&app.brand, &sandbox, row)
}

pub async fn patch(
    app: &App,
    caller: &Caller,
    reference: &str,
    id: String,
    request: PatchPreview,
) -> Result<Preview, Error> {
    caller.require(Scope::PreviewsWrite)?;
    let name = request.name.as_deref().map(|name| text::check_name("name", name)).transpose()?;
    let now_us = app.now_us();
    let (updated, published) = (
        audit::row(caller, now_us, "preview.updated", "preview", &id),
        audit::row(caller, now_us, "preview.published", "preview", &id),
    );
    let place = Place { sandbox: Some(reference.to_owned()), preview: id };
    let caller = caller.clone();
    let changed = app.store.decide(move |tx| {
        let (sandbox, mut row) = place.find(tx, &caller)?;
        let about = Attribution::from(&sandbox);
        if let Some(name) = &name {
            table::set_name(tx, &row.id, name, now_us)?;
            row.name.clone_from(name);
        }
        if let Some(visibility) = request.visibility.filter(|visibility| word(*visibility) != row.visibility)
        {
            table::set_visibility(tx, &row.id, word(visibility), now_us)?;
            word(visibility).clone_into(&mut row.visibility);
            if visibility == Visibility::Public {
                published.clone().about(&about).with("port", &row.port).insert(tx)?;
            }
        }
        updated.clone().about(&about).with("visibility", &row.visibility).insert(tx)?;
        row.updated_us = now_us;
        Ok::<_, Error>((sandbox, row))
    });
    let (sandbox, row) = changed.await?;
    app.fleet.note_change();
    record(&app.brand, &sandbox, row)
}

/// Takes the address away, and with it every token for it.
pub async fn remove(app: &App, caller: &Caller, reference: &str, id: String) -> Result<(), Error> {
    caller.require(Scope::PreviewsWrite)?;
    let now_us = app.now_us();
    let audited = audit::row(caller, now_us, "preview.deleted", "preview", &id);
    let place = Place { sandbox: Some(reference.to_owned()), preview: id };
    let caller = caller.clone();
    let removed = app.store.decide(move |tx| {
        let (sandbox, row) = place.find(tx, &caller)?;
        table::remove(tx, &row.id, now_us)?;
        audited.clone().about(&Attribution::from(&sandbox)).with("port", &row.port).insert(tx)
    });
    removed.await?;
    app.fleet.note_change();
    Ok(())
}

/// How a path names a preview: its own id, and perhaps the sandbox it must belong to.
#[derive(Debug, Clone)]
pub struct Place {
    pub sandbox: Option<String>,
    pub preview: String,
}

impl Place {
    fn find(&self, tx: &mut Tx<'_>, caller: &Caller) -> Result<(SandboxRow, Row), Error> {
        let absent = || Error::NotFound { what: "preview" };
        let owner =
            self.sandbox.as_ref().map(|reference| sandbox::find(tx, caller, reference)).transpose()?;
        let row = table::find(tx, &caller.tenant_id, &self.preview)?.ok_or_else(absent)?;
        let sandbox = match owner {
            Some(owner) => owner,
            None => sandbox::find(tx, caller, &row.sandbox_id).map_err(|error| match error {
                Error::NotFound { .. } => absent(),
                other => other,
            })?,
        };
        if row.sandbox_id == sandbox.id { Ok((sandbox, row)) } else { Err(absent()) }
    }
}

async fn find(app: &App, caller: &Caller, place: Place) -> Result<(SandboxRow, Row), Error> {
    let caller = caller.clone();
    app.store.examine(move |tx| place.find(tx, &caller)).await
}

fn find_live_sandbox(tx: &mut Tx<'_>, caller: &Caller, reference: &str) -> Result<SandboxRow, Error> {
    let row = sandbox::find(tx, caller, reference)?;
    if row.desired_run == "destroyed" { Err(Error::no_sandbox()) } else { Ok(row) }
}

fn check_port(port: u32) -> Result<u16, Error> {
    let refused =
        || Error::invalid("port", "1 to 65535, and not the port that the platform keeps for itself");
    let port = u16::try_from(port).map_err(|_| refused())?;
    if is_publishable_port(port) { Ok(port) } else { Err(refused()) }
}

fn word(visibility: Visibility) -> &'static str {
    match visibility {
        Visibility::Private => "private",
        Visibility::Public => "public",
    }
}

/// Where a browser finds it: by its key on the platform's domain, by port and slug on a tenant's own.
pub fn url(brand: &Brand, sandbox: &SandboxRow, row: &Row) -> Result<String, Error> {
    let domain = Host::parse(&sandbox.preview_domain)
        .map_err(|source| Error::internal("read a preview domain", source))?;
    let port = u16::try_from(row.port).map_err(|source| Error::internal("read a preview's port", source))?;
    let target = if sandbox.preview_domain == brand.preview_domain {
        Target::Key(
            Key::parse(&row.key).ok_or_else(|| Error::internal("read a preview's key", row.id.clone()))?,
        )
    } else {
        let slug = Slug::parse(&sandbox.slug).map_err(|source| Error::internal("read a slug", source))?;
        Target::Port { port, slug }
    };
    let host = PreviewHost { target, domain };
    Ok(match brand.preview_port {
        Some(port) if port != 443 => format!("https://{host}:{port}"),
        _ => format!("https://{host}"),
    })
}

fn record(brand: &Brand, sandbox: &SandboxRow, row: Row) -> Result<Preview, Error> {
    let url = url(brand, sandbox, &row)?;
    Ok(Preview {
        id: row.id,
        sandbox_id: row.sandbox_id,
        name: (!row.name.is_empty()).then_some(row.name),
        port: u16::try_from(row.port).unwrap_or(0),
        visibility: if row.visibility == "public" { Visibility::Public } else { Visibility::Private },
        state: "active".to_owned(),
        url,
        external_workspace_id: sandbox.external_workspace_id.clone(),
        external_user_id: sandbox.external_user_id.clone(),
        external_project_id: sandbox.external_project_id.clone(),
        workspace_id: sandbox.workspace_id.clone(),
        project_id: sandbox.project_id.clone(),
        created_at: Timestamp::from_micros(row.created_us),
        updated_at: Timestamp::from_micros(row.updated_us),
    })
}
