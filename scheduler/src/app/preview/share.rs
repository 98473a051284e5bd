//! Tokens that open a private preview in a browser: minting, listing, revoking.
//!
//! A token is `<prefix><tid>.<jwt>`; hosts verify it with public keys and cannot mint. Only `tid`, hash,
//! prefix and expiry are stored. Revoking raises the preview's share generation, which hosts learn within the
//! revocation bound.

use roost_api::preview::{
    ActiveShare, MintPreviewToken, MintShare, MintedPreviewToken, MintedShare, MintedShareData, Visibility,
};
use roost_api::{OneTime, Timestamp};
use roost_domain::limits;
use roost_domain::sabotage::Defence;
use roost_domain::token::{self, Claims, Kind, Scope as TokenScope};
use sha2::{Digest as _, Sha256};

use super::{DEFAULT_PORT, Draft, Place, Row, check_port, ensure, find, find_live_sandbox, url};
use crate::app::label::Attribution;
use crate::app::sandbox::Row as SandboxRow;
use crate::app::{App, Caller, Error, Scope, audit, settings};
use crate::store::preview::{self as table, ShareToken};

/// What hosts expect as the audience of every token they check.
const AUDIENCE: &str = "preview";
const TID_CHARACTERS: usize = 16;
/// How often a token is signed anew because the preview's were revoked in that moment.
const MINT_ATTEMPTS: usize = 16;
const MIN_LIFETIME_S: u64 = 60;

/// A token that is signed and not yet recorded.
struct Minted {
    token: OneTime,
    tid: String,
    prefix: String,
    expires_us: i64,
}

/// Mints a share token of a preview. Older ones stay valid.
pub async fn mint(
    app: &App,
    caller: &Caller,
    place: Place,
    request: MintShare,
) -> Result<MintedShare, Error> {
    caller.require(Scope::PreviewsWrite)?;
    let given = [
        request.expires_in_sec,
        request.ttl_seconds,
        request.expires_in,
        request.expires_in_seconds,
        request.expires_in_sec_camel,
    ];
    let lifetime_s = lifetime(&given, max_lifetime(app, caller).await?)?;
    let scopes = share_scopes(request.scopes)?;
    for _ in 0..MINT_ATTEMPTS {
        let (sandbox, row) = find(app, caller, place.clone()).await?;
        let minted = sign(app, Kind::Preview, &sandbox, &row, &scopes, lifetime_s).await?;
        let about = Attribution::from(&sandbox);
        let expires_at = Timestamp::from_micros(minted.expires_us);
        let issued = audit::row(caller, app.now_us(), "preview.share_token.issued", "preview", &row.id)
            .about(&about)
            .with_metadata(about.share_issued(expires_at, minted.prefix.clone()).into());
        if !record(app, caller, &minted, Kind::Preview, &sandbox, &row, &scopes, issued).await? {
            continue;
        }
        let base = url(&app.brand, &sandbox, &row)?;
        return Ok(MintedShare {
            share_url: OneTime::new(format!("{base}/?preview_token={}", minted.token.expose())),
            preview_token: minted.token,
            data: MintedShareData {
                id: row.id,
                share_token_prefix: minted.prefix,
                share_token_expires_at: expires_at,
                token_id: minted.tid,
            },
        });
    }
    Err(Error::ChangedMeanwhile)
}

/// Mints the shorter kind: for a port of a sandbox, whose preview is made if there is none.
pub async fn mint_preview_token(
    app: &App,
    caller: &Caller,
    reference: &str,
    request: MintPreviewToken,
) -> Result<MintedPreviewToken, Error> {
    caller.require(Scope::PreviewsWrite)?;
    let given = [request.expires_in, request.expires_in_sec, request.expires_in_seconds, request.ttl_seconds];
    let lifetime_s = lifetime(&given, max_lifetime(app, caller).await?)?;
    let (word, scopes) = match request.scope.as_deref() {
        None | Some("read") => ("read", vec![TokenScope::PreviewRead]),
        Some("interact") => ("interact", vec![TokenScope::PreviewRead, TokenScope::PreviewInteract]),
        Some(other) => return Err(Error::TokenScope { scope: limits::excerpt(other) }),
    };
    let port = check_port(request.port.unwrap_or(DEFAULT_PORT))?;
    let draft = Draft::new(app, caller, port, String::new(), Visibility::Private)?;
    for _ in 0..MINT_ATTEMPTS {
        let (draft, caller_too, reference) = (draft.clone(), caller.clone(), reference.to_owned());
        let ensured = app.store.decide(move |tx| {
            let sandbox = find_live_sandbox(tx, &caller_too, &reference)?;
            let (row, _) = ensure(tx, &sandbox, &draft)?;
            Ok::<_, Error>((sandbox, row))
        });
        let (sandbox, row) = ensured.await?;
        app.fleet.note_change();
        let minted = sign(app, Kind::Embed, &sandbox, &row, &scopes, lifetime_s).await?;
        let about = Attribution::from(&sandbox);
        let expires_at = Timestamp::from_micros(minted.expires_us);
        let issued = audit::row(caller, app.now_us(), "browser_token.issued", "preview", &row.id)
            .about(&about)
            .with_metadata(about.share_issued(expires_at, minted.prefix.clone()).into());
        if !record(app, caller, &minted, Kind::Embed, &sandbox, &row, &scopes, issued).await? {
            continue;
        }
        let base = url(&app.brand, &sandbox, &row)?;
        return Ok(MintedPreviewToken {
            url: OneTime::new(format!("{base}/?mt={}", minted.token.expose())),
            token: minted.token,
            expires_at,
            scope: word.to_owned(),
            token_id: minted.tid,
        });
    }
    Err(Error::ChangedMeanwhile)
}

/// The one lifetime that several spellings may give; two that differ are refused.
fn lifetime(given: &[Option<u64>], max_s: u64) -> Result<u64, Error> {
    let mut values = given.iter().flatten().copied();
    let default = u64::try_from(token::LIFETIME_S_DEFAULT).unwrap_or(MIN_LIFETIME_S);
    let seconds = values.next().unwrap_or_else(|| default.min(max_s));
    if values.any(|other| other != seconds) {
        return Err(Error::invalid("expires_in_sec", "was given twice with different values"));
    }
    if seconds < MIN_LIFETIME_S {
        return Err(Error::invalid("expires_in_sec", format!("at least {MIN_LIFETIME_S}")));
    }
    let is_too_long = seconds > max_s && !Defence::ShareLifetime.is_off();
    if is_too_long { Err(Error::LifetimeExceedsPlan { seconds, limit: max_s }) } else { Ok(seconds) }
}

async fn max_lifetime(app: &App, caller: &Caller) -> Result<u64, Error> {
    let (tenant_id, limit) = (caller.tenant_id.clone(), app.limits.max_share_ttl_s);
    let settings = app.store.read(move |tx| settings::read(tx, &tenant_id, limit)).await?;
    Ok(settings.previews.max_share_ttl_sec)
}

/// A share is for embedding, so forms and sockets work unless the caller asks for less.
fn share_scopes(wanted: Option<Vec<String>>) -> Result<Vec<TokenScope>, Error> {
    let Some(names) = wanted else {
        return Ok(vec![TokenScope::PreviewRead, TokenScope::PreviewInteract]);
    };
    let mut scopes = vec![TokenScope::PreviewRead];
    for name in names {
        match TokenScope::find(&name) {
            Some(TokenScope::PreviewRead) => {}
            Some(TokenScope::PreviewInteract) if !scopes.contains(&TokenScope::PreviewInteract) => {
                scopes.push(TokenScope::PreviewInteract);
            }
            Some(TokenScope::PreviewInteract) => {}
            _ => return Err(Error::TokenScope { scope: limits::excerpt(&name) }),
        }
    }
    Ok(scopes)
}

async fn sign(
    app: &App,
    kind: Kind,
    sandbox: &SandboxRow,
    row: &Row,
    scopes: &[TokenScope],
    lifetime_s: u64,
) -> Result<Minted, Error> {
    let tid = random_tid()?;
    let now_s = app.now_us() / 1_000_000;
    let exp = now_s + i64::try_from(lifetime_s).unwrap_or(token::LIFETIME_S_MAX);
    let claims = Claims {
        iss: app.brand.issuer.clone(),
        aud: AUDIENCE.to_owned(),
        tid: tid.clone(),
        tenant: sandbox.tenant_id.clone(),
        rid: row.id.clone(),
        typ: kind,
        sid: sandbox.id.clone(),
        scopes: scopes.to_vec(),
        generation: u64::try_from(row.share_generation).unwrap_or(0),
        iat: now_s,
        nbf: now_s,
        exp,
    };
    let key = app.vault.signing_key().await?;
    let jwt = key.sign(&claims)?;
    let token = token::compose(kind, &app.brand.token_brand, &tid, &jwt);
    let prefix = token::shown_prefix(&token).to_owned();
    Ok(Minted { token: OneTime::new(token), tid, prefix, expires_us: exp * 1_000_000 })
}

/// Base 62 without bias: bytes that would fold unevenly are drawn again.
fn random_tid() -> Result<String, Error> {
    const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let mut tid = String::with_capacity(TID_CHARACTERS);
    while tid.len() < TID_CHARACTERS {
        let mut bytes = [0u8; 32];
        getrandom::fill(&mut bytes).map_err(|source| Error::internal("make a token's id", source))?;
        let even = bytes.iter().filter(|byte| usize::from(**byte) < 4 * ALPHABET.len());
        let wanted = TID_CHARACTERS - tid.len();
        tid.extend(even.take(wanted).map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()])));
    }
    Ok(tid)
}

/// Records a token under the generation it was signed with. False where a revocation overtook it: it is not handed
/// out, and another one is signed.
#[allow(clippy::too_many_arguments)]
async fn record(
    app: &App,
    caller: &Caller,
    minted: &Minted,
    kind: Kind,
    sandbox: &SandboxRow,
    row: &Row,
    scopes: &[TokenScope],
    issued: audit::Row,
) -> Result<bool, Error> {
    let token = ShareToken {
        tid: minted.tid.clone(),
        tenant_id: sandbox.tenant_id.clone(),
        kind: if kind == Kind::Embed { "preview_token" } else { "share" }.to_owned(),
        sandbox_id: Some(sandbox.id.clone()),
        preview_id: Some(row.id.clone()),
        external_user_id: sandbox.external_user_id.clone(),
        prefix: minted.prefix.clone(),
        sha256: Sha256::digest(minted.token.expose().as_bytes()).to_vec(),
        scopes: scopes.iter().map(|scope| scope.text().to_owned()).collect(),
        label: String::new(),
        share_generation: row.share_generation,
        actor: caller.actor(),
        created_us: app.now_us(),
        expires_us: Some(minted.expires_us),
        revoked_us: None,
    };
    let stored = app.store.decide(move |tx| {
        let current = table::find(tx, &token.tenant_id, token.preview_id.as_deref().unwrap_or(""))?;
        if current.is_none_or(|current| current.share_generation != token.share_generation) {
            return Ok(false);
        }
        table::insert_token(tx, &token)?;
        issued.insert(tx)?;
        Ok(true)
    });
    stored.await
}

/// Tokens that still open the preview, without the tokens.
pub async fn list(app: &App, caller: &Caller, place: Place) -> Result<Vec<ActiveShare>, Error> {
    caller.require(Scope::PreviewsWrite)?;
    let (_, row) = find(app, caller, place).await?;
    let now_us = app.now_us();
    let tokens = app.store.read(move |tx| table::list_live_tokens(tx, &row.id, now_us)).await?;
    Ok(tokens.into_iter().map(shown).collect())
}

fn shown(token: ShareToken) -> ActiveShare {
    ActiveShare {
        token_id: token.tid,
        prefix: token.prefix,
        scopes: token.scopes,
        created_by: token.actor,
        created_at: Timestamp::from_micros(token.created_us),
        expires_at: Timestamp::from_micros(token.expires_us.unwrap_or(i64::MAX / 2)),
    }
}

/// Kills every outstanding token of the preview. Repeatable.
pub async fn revoke(app: &App, caller: &Caller, place: Place) -> Result<(), Error> {
    caller.require(Scope::PreviewsWrite)?;
    let now_us = app.now_us();
    let audited = audit::row(caller, now_us, "preview.share_token.revoked", "preview", &place.preview);
    let caller = caller.clone();
    let revoked = app.store.decide(move |tx| {
        let (sandbox, row) = place.find(tx, &caller)?;
        table::revoke_shares(tx, &row.id, now_us)?;
        audited
            .clone()
            .about(&Attribution::from(&sandbox))
            .with("generation", &(row.share_generation + 1))
            .insert(tx)
    });
    revoked.await?;
    app.fleet.note_change();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_lifetime_in_several_spellings() {
        assert_eq!(lifetime(&[None, None], 86_400).unwrap(), 3600);
        assert_eq!(lifetime(&[Some(900), None, Some(900)], 86_400).unwrap(), 900);
        assert!(matches!(lifetime(&[Some(900), Some(901)], 86_400), Err(Error::Invalid { .. })));
        assert!(matches!(lifetime(&[Some(59)], 86_400), Err(Error::Invalid { .. })));
        assert!(matches!(lifetime(&[Some(86_401)], 86_400), Err(Error::LifetimeExceedsPlan { .. })));
        assert_eq!(lifetime(&[None], 600).unwrap(), 600);
    }

    #[test]
    fn token_ids_are_ids_and_differ() {
        let (one, other) = (random_tid().unwrap(), random_tid().unwrap());
        assert!(token::is_tid(&one) && token::is_tid(&other) && one != other);
    }

    #[test]
    fn shares_are_for_embedding_unless_asked_for_less() {
        assert_eq!(share_scopes(None).unwrap().len(), 2);
        assert_eq!(share_scopes(Some(vec!["preview:read".into()])).unwrap(), [TokenScope::PreviewRead]);
        for bad in ["terminal", "admin", ""] {
            assert!(matches!(share_scopes(Some(vec![bad.into()])), Err(Error::TokenScope { .. })), "{bad}");
        }
    }
}
