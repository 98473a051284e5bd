//! Who may see a private preview: the first presented token that opens it, judged on every request.
//!
//! Pure but for the verifier's keys. Decides, and does nothing.

use roost_domain::token::{self, Claims, Expected, Kind, Refusal, Scope};

use super::credential::Source;
use super::page::Problem;
use super::route::Route;
use super::verify::Verifier;

/// What tokens for previews are addressed to.
pub(super) const AUDIENCE: &str = "preview";
const KINDS: [Kind; 3] = [Kind::Preview, Kind::Embed, Kind::Share];

/// The token that opened a preview.
pub(super) struct Admission {
    pub source: Source,
    pub token: String,
    /// Seconds since 1970 at which it stops doing so.
    pub expires_s: i64,
}

impl std::fmt::Debug for Admission {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Admission").field("source", &self.source).finish_non_exhaustive()
    }
}

/// Tries the presented tokens in order; of several refusals the first one counts.
pub(super) fn decide(
    route: &Route,
    presented: Vec<(Source, String)>,
    scope: Scope,
    verifier: &Verifier,
    brand: &str,
    now_us: i64,
) -> Result<Admission, Problem> {
    if presented.is_empty() {
        return Err(Problem::TokenMissing);
    }
    if !verifier.has_keys() {
        return Err(Problem::SchedulerUnavailable);
    }
    let issuer = verifier.issuer();
    let expected = Expected {
        issuer: &issuer,
        audience: AUDIENCE,
        tenant: &route.tenant,
        resource: &route.preview,
        kinds: &KINDS,
        scope,
        generation: route.generation,
    };
    let mut refused = None;
    for (source, token) in presented {
        match judge(&token, &expected, verifier, brand, now_us) {
            Ok(claims) => return Ok(Admission { source, token, expires_s: claims.exp }),
            Err(problem) => refused = refused.or(Some(problem)),
        }
    }
    Err(refused.unwrap_or(Problem::TokenMissing))
}

fn judge(
    text: &str,
    expected: &Expected<'_>,
    verifier: &Verifier,
    brand: &str,
    now_us: i64,
) -> Result<Claims, Problem> {
    let claims = verifier.verify(text, now_us).map_err(|_| Problem::TokenInvalid)?;
    let parts = token::split(text, brand).ok_or(Problem::TokenInvalid)?;
    claims.check(&parts, expected, now_us.div_euclid(1_000_000)).map_err(problem)?;
    Ok(claims)
}

const fn problem(refusal: Refusal) -> Problem {
    match refusal {
        Refusal::Expired => Problem::TokenExpired,
        Refusal::Revoked => Problem::TokenRevoked,
        Refusal::Resource => Problem::TokenWrongResource,
        Refusal::Scope => Problem::InsufficientScope,
        Refusal::Form | Refusal::Issuer | Refusal::Early | Refusal::Lifetime => Problem::TokenInvalid,
    }
}
