//! Browser tokens: `<prefix><tid>.<jwt>`, taken apart and judged. Signatures are verified by whoever holds the keys.
//!
//! The `tid` is random, so the first 12 characters of a token tell tokens apart in logs without giving one away.
//! A token opens one resource, for one tenant, for a while, as long as the resource's share generation has not
//! been raised. It never authorises a call to the API.

use serde::{Deserialize, Serialize};

use crate::sabotage::Defence;
use crate::text::words;

/// Shortest random part.
pub const TID_BYTES_MIN: usize = 10;
const TID_BYTES_MAX: usize = 32;
/// Longest token that is looked at.
pub const TOKEN_BYTES_MAX: usize = 4096;
/// Characters of a token that may be shown.
pub const SHOWN_BYTES: usize = 12;
/// How far the clocks of two machines may differ.
pub const CLOCK_SKEW_S: i64 = 30;
/// Longest lifetime of any browser token.
pub const LIFETIME_S_MAX: i64 = 24 * 3600;
/// Lifetime unless the caller says otherwise.
pub const LIFETIME_S_DEFAULT: i64 = 3600;

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A preview, from its share call.
    Preview,
    /// A port of a sandbox, from its preview-token call.
    Embed,
    /// A public share link.
    Share,
    Terminal,
    Upload,
    /// Read-only, over the resources of one external user.
    User,
}

words!(Kind, "token kind" {
    Preview => "preview",
    Embed => "embed",
    Share => "share",
    Terminal => "terminal",
    Upload => "upload",
    User => "user",
});

impl Kind {
    /// What tokens of this kind begin with, under a brand (`miosa`).
    pub fn prefix(self, brand: &str) -> String {
        match self {
            Self::Preview => format!("{brand}_pv_"),
            Self::Embed => "mp_".to_owned(),
            Self::Share => "ms_".to_owned(),
            Self::Terminal => format!("{brand}_tt_"),
            Self::Upload => format!("{brand}_up_"),
            Self::User => format!("{brand}_bt_"),
        }
    }
}

/// What a token permits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    PreviewRead,
    /// Other methods than GET and HEAD, WebSockets.
    PreviewInteract,
    FilesRead,
    FilesWrite,
    Terminal,
    Run,
    SandboxesRead,
    PreviewsRead,
}

words!(Scope, "scope" {
    PreviewRead => "preview:read",
    PreviewInteract => "preview:interact",
    FilesRead => "files:read",
    FilesWrite => "files:write",
    Terminal => "terminal",
    Run => "run",
    SandboxesRead => "sandboxes:read",
    PreviewsRead => "previews:read",
});

/// The claims of every browser token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claims {
    pub iss: String,
    pub aud: String,
    /// The random part outside the JWT, repeated inside: a token cannot be relabelled.
    pub tid: String,
    pub tenant: String,
    /// Id of the one resource it opens.
    pub rid: String,
    pub typ: Kind,
    /// The sandbox behind the resource; empty for a user's token.
    pub sid: String,
    pub scopes: Vec<Scope>,
    /// Share generation of the resource when the token was made.
    #[serde(rename = "gen")]
    pub generation: u64,
    pub iat: i64,
    pub nbf: i64,
    pub exp: i64,
}

/// A token's text, taken apart.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Parts<'a> {
    pub kind: Kind,
    pub tid: &'a str,
    pub jwt: &'a str,
}

impl std::fmt::Debug for Parts<'_> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Parts").field("kind", &self.kind).field("tid", &self.tid).finish_non_exhaustive()
    }
}

/// Whether a text may be a random part.
pub fn is_tid(text: &str) -> bool {
    (TID_BYTES_MIN..=TID_BYTES_MAX).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// Joins a token. The caller made `tid` from at least 10 random base-62 characters.
pub fn compose(kind: Kind, brand: &str, tid: &str, jwt: &str) -> String {
    format!("{}{tid}.{jwt}", kind.prefix(brand))
}

/// Takes a text apart if it has the form of one of our tokens. Nothing is verified by that.
pub fn split<'a>(text: &'a str, brand: &str) -> Option<Parts<'a>> {
    if text.len() > TOKEN_BYTES_MAX {
        return None;
    }
    let (kind, rest) =
        Kind::ALL.iter().find_map(|kind| Some((*kind, text.strip_prefix(kind.prefix(brand).as_str())?)))?;
    let (tid, jwt) = rest.split_once('.')?;
    let is_base64url = |part: &str| {
        !part.is_empty()
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    (is_tid(tid) && jwt.split('.').count() == 3 && jwt.split('.').all(is_base64url)).then_some(Parts {
        kind,
        tid,
        jwt,
    })
}

/// The part of a token that may be shown and logged.
pub fn shown_prefix(token: &str) -> &str {
    let end = token.char_indices().nth(SHOWN_BYTES).map_or(token.len(), |(index, _)| index);
    &token[..end]
}

/// What the verifier of a request knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected<'a> {
    pub issuer: &'a str,
    pub audience: &'a str,
    pub tenant: &'a str,
    /// The resource that is asked for.
    pub resource: &'a str,
    /// Kinds that open it.
    pub kinds: &'a [Kind],
    pub scope: Scope,
    /// Tokens of an earlier share generation are revoked.
    pub generation: u64,
}

/// Why a token with a valid signature does not open the resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the token is not for this use")]
    Form,
    #[error("the token is of another issuer")]
    Issuer,
    #[error("the token is not valid yet")]
    Early,
    #[error("the token has expired")]
    Expired,
    #[error("the token lives longer than any may")]
    Lifetime,
    #[error("the token is of another resource")]
    Resource,
    #[error("the token was revoked")]
    Revoked,
    #[error("the token lacks the scope")]
    Scope,
}

impl Claims {
    /// Judges the claims of a token whose signature is valid. `parts` is the text they came in.
    pub fn check(&self, parts: &Parts<'_>, expected: &Expected<'_>, now_s: i64) -> Result<(), Refusal> {
        if self.typ != parts.kind || self.tid != parts.tid {
            return Err(Refusal::Form);
        }
        if self.iss != expected.issuer || self.aud != expected.audience {
            return Err(Refusal::Issuer);
        }
        self.check_time(now_s)?;
        let opens = expected.kinds.contains(&self.typ);
        let is_its_own = self.tenant == expected.tenant && self.rid == expected.resource;
        if !(opens && is_its_own || Defence::TokenResource.is_off()) {
            return Err(Refusal::Resource);
        }
        if self.generation < expected.generation && !Defence::TokenRevocation.is_off() {
            return Err(Refusal::Revoked);
        }
        let is_granted = self.scopes.contains(&expected.scope) || Defence::TokenScope.is_off();
        if is_granted { Ok(()) } else { Err(Refusal::Scope) }
    }

    /// The part of the judgement that changes while a connection is open.
    pub fn check_time(&self, now_s: i64) -> Result<(), Refusal> {
        if self.exp.saturating_sub(self.iat) > LIFETIME_S_MAX {
            return Err(Refusal::Lifetime);
        }
        if now_s >= self.exp && !Defence::TokenExpiry.is_off() {
            return Err(Refusal::Expired);
        }
        if self.nbf.max(self.iat) > now_s + CLOCK_SKEW_S {
            return Err(Refusal::Early);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TID: &str = "Ab3dEf7h1J";
    const NOW_S: i64 = 1_800_000_000;

    fn claims() -> Claims {
        Claims {
            iss: "roost".into(),
            aud: "preview".into(),
            tid: TID.into(),
            tenant: "ten_1".into(),
            rid: "preview_A".into(),
            typ: Kind::Preview,
            sid: "sbx_1".into(),
            scopes: vec![Scope::PreviewRead],
            generation: 3,
            iat: NOW_S,
            nbf: NOW_S,
            exp: NOW_S + 3600,
        }
    }

    fn expected() -> Expected<'static> {
        Expected {
            issuer: "roost",
            audience: "preview",
            tenant: "ten_1",
            resource: "preview_A",
            kinds: &[Kind::Preview],
            scope: Scope::PreviewRead,
            generation: 3,
        }
    }

    const PARTS: Parts<'_> = Parts { kind: Kind::Preview, tid: TID, jwt: "a.b.c" };

    #[test]
    fn dec_03_the_shown_prefix_tells_tokens_apart() {
        let token = compose(Kind::Preview, "miosa", TID, "eyJh.eyJp.c2ln");
        assert_eq!(token, "miosa_pv_Ab3dEf7h1J.eyJh.eyJp.c2ln");
        assert_eq!(shown_prefix(&token), "miosa_pv_Ab3");
        assert_eq!(
            split(&token, "miosa"),
            Some(Parts { kind: Kind::Preview, tid: TID, jwt: "eyJh.eyJp.c2ln" })
        );
        assert!(!format!("{:?}", split(&token, "miosa")).contains("c2ln"));
    }

    #[test]
    fn what_has_not_the_form_is_none() {
        for text in [
            "",
            "miosa_pv_",
            "miosa_pv_Ab3dEf7h1J",
            "miosa_pv_short.a.b.c",
            "miosa_pv_Ab3dEf7h1J.a.b",
            "miosa_pv_Ab3dEf7h1J.a.b.c.d",
            "miosa_pv_Ab3dEf7h1J.a..c",
            "miosa_pv_Ab3dEf7h1J.a.b.c=",
            "xp_Ab3dEf7h1J.a.b.c",
            "miosa_pv_Ab3dEf7h-J.a.b.c",
            "acme_pv_Ab3dEf7h1J.a.b.c",
            "some-app-token",
        ] {
            assert_eq!(split(text, "miosa"), None, "{text}");
        }
        let long = compose(Kind::Preview, "miosa", TID, &format!("a.{}.c", "b".repeat(TOKEN_BYTES_MAX)));
        assert_eq!(split(&long, "miosa"), None);
    }

    #[test]
    fn each_claim_matters() {
        let refusal = |change: &dyn Fn(&mut Claims)| {
            let mut changed = claims();
            change(&mut changed);
            changed.check(&PARTS, &expected(), NOW_S).err()
        };
        assert_eq!(refusal(&|_| {}), None);
        assert_eq!(refusal(&|claims| claims.generation = 9), None);
        assert_eq!(refusal(&|claims| claims.tid = "Zz3dEf7h1J".into()), Some(Refusal::Form));
        assert_eq!(refusal(&|claims| claims.typ = Kind::Terminal), Some(Refusal::Form));
        assert_eq!(refusal(&|claims| claims.iss = "evil".into()), Some(Refusal::Issuer));
        assert_eq!(refusal(&|claims| claims.aud = "api".into()), Some(Refusal::Issuer));
        assert_eq!(refusal(&|claims| claims.tenant = "ten_2".into()), Some(Refusal::Resource));
        assert_eq!(refusal(&|claims| claims.rid = "preview_B".into()), Some(Refusal::Resource));
        assert_eq!(refusal(&|claims| claims.generation = 2), Some(Refusal::Revoked));
        assert_eq!(refusal(&|claims| claims.scopes = vec![Scope::Terminal]), Some(Refusal::Scope));
        assert_eq!(refusal(&|claims| claims.exp = NOW_S), Some(Refusal::Expired));
        assert_eq!(refusal(&|claims| claims.exp = NOW_S + LIFETIME_S_MAX + 1), Some(Refusal::Lifetime));
        assert_eq!(refusal(&|claims| claims.nbf = NOW_S + CLOCK_SKEW_S), None);
        assert_eq!(refusal(&|claims| claims.nbf = NOW_S + CLOCK_SKEW_S + 1), Some(Refusal::Early));
    }

    #[test]
    fn claims_are_a_closed_set() {
        let json = serde_json::to_string(&claims()).unwrap();
        assert!(json.contains("\"gen\":3") && json.contains("\"typ\":\"preview\""), "{json}");
        assert_eq!(serde_json::from_str::<Claims>(&json).unwrap(), claims());
        let with_more = json.replacen('{', "{\"admin\":true,", 1);
        assert!(serde_json::from_str::<Claims>(&with_more).is_err());
    }

    proptest! {
        #[test]
        fn what_is_joined_comes_apart(kind in proptest::sample::select(Kind::ALL), tid in "[0-9A-Za-z]{10,32}", jwt in "[0-9A-Za-z_-]{1,9}\\.[0-9A-Za-z_-]{1,9}\\.[0-9A-Za-z_-]{1,9}") {
            let token = compose(kind, "miosa", &tid, &jwt);
            prop_assert_eq!(split(&token, "miosa"), Some(Parts { kind, tid: &tid, jwt: &jwt }));
        }

        #[test]
        fn any_text_is_taken_calmly(text in ".{0,60}") {
            let _ = (split(&text, "miosa"), shown_prefix(&text));
        }
    }
}
