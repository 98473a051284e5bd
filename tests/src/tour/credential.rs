//! Steps: a credential that is put into a request on its way out, and the audit row that says so.

use std::time::Duration;

use anyhow::ensure;
use serde_json::json;

use super::{Step, call, print, sandbox, shell, text};
use crate::poll;
use crate::stack::tenant::Tenant;
use crate::upstream::{self, Upstream};

const VALUE: &str = "tour-secret-8f2c61d0";
const ENV: &str = "ECHO_API_KEY";
/// Audit rows are shipped in segments.
const AUDIT_DEADLINE: Duration = Duration::from_secs(30);

pub(super) fn swap(tenant: &Tenant, id: &str, upstream: &Upstream) -> Step<()> {
    let body = json!({
        "name": ENV, "value": VALUE, "scope": "external_user", "external_user_id": sandbox::USER,
        "expose_as_env": ENV, "allowed_hosts": [upstream::NAME],
    });
    call(tenant, "POST", "/egress/secrets", Some(&body))?;
    let placeholder = shell(tenant, id, &format!("echo ${ENV}"))?;
    ensure!(!placeholder.is_empty(), "the sandbox has no {ENV}");
    ensure!(!placeholder.contains(VALUE), "the sandbox sees the value itself");
    let answer = shell(
        tenant,
        id,
        &format!("curl -sS -H \"Authorization: Bearer ${ENV}\" {}", upstream.url("/v1/models")),
    )?;
    ensure!(answer == upstream::ANSWER, "the call was answered with {answer}");
    let seen = upstream.seen();
    let arrived = seen.iter().rev().find(|seen| seen.line == "GET /v1/models");
    let arrived = arrived.and_then(|seen| seen.header("authorization")).unwrap_or_default();
    ensure!(arrived == format!("Bearer {VALUE}"), "the server got another credential: {arrived:?}");
    print::output(&format!("the server received: Authorization: Bearer {VALUE}"));
    Ok((
        (),
        format!(
            "inside there is only {placeholder}; the value was put in on the way to the one host it is for"
        ),
    ))
}

pub(super) fn audit(tenant: &Tenant, id: &str) -> Step<()> {
    let path = format!("/egress/audit?resource_id={id}&host={}", upstream::NAME);
    print::command(&tenant.shown("GET", &path, None));
    let row = poll::until("the audit row of the call", AUDIT_DEADLINE, || {
        let rows = tenant.call("GET", &path, None)?.data()?;
        let rows = rows.as_array().cloned().unwrap_or_default();
        Ok(rows.into_iter().find(|row| row["path"] == "/v1/models" && row["status_code"] == 200))
    })?;
    let shown = format!(
        "{} {} {}{} → {} {}",
        text(&row, "action")?,
        text(&row, "method")?,
        text(&row, "host")?,
        text(&row, "path")?,
        row["status_code"],
        row["request_transforms"]
    );
    print::output(&shown);
    ensure!(
        row["request_transforms"].to_string().contains(ENV),
        "the row does not name the credential: {row}"
    );
    ensure!(row["external_user_id"] == sandbox::USER, "the row is not your end-user's: {row}");
    ensure!(!row.to_string().contains(VALUE), "the row holds the value");
    Ok(((), format!("the row names {ENV} and your end-user, and not the value")))
}
