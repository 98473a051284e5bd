//! Steps: a server in the sandbox, seen from a browser's place.

use std::time::Duration;

use anyhow::ensure;
use serde_json::json;

use super::{Step, call, print, shell, text};
use crate::browser;
use crate::poll;
use crate::stack::Stack;

const PORT: u16 = 8000;
const PAGE: &str = "served from a microVM";
const SERVER_DEADLINE: Duration = Duration::from_secs(20);
/// Pushed revocation is seen within this.
const REVOKE_DEADLINE: Duration = Duration::from_secs(5);

pub(super) struct Preview {
    sandbox: String,
    id: String,
    url: String,
    share_url: std::cell::RefCell<String>,
}

impl Preview {
    fn share_path(&self) -> String {
        format!("/sandboxes/{}/previews/{}/share", self.sandbox, self.id)
    }
}

pub(super) fn open(stack: &Stack, sandbox: &str) -> Step<Preview> {
    let tenant = stack.tenant();
    let start = format!(
        "mkdir -p /tmp/site && cd /tmp/site && echo '{PAGE}' > index.html && \
         (python3 -m http.server {PORT} >/dev/null 2>&1 &)"
    );
    shell(tenant, sandbox, &start)?;
    let made =
        call(tenant, "POST", &format!("/sandboxes/{sandbox}/previews"), Some(&json!({ "port": PORT })))?;
    let preview = Preview {
        sandbox: sandbox.to_owned(),
        id: text(&made, "id")?.to_owned(),
        url: text(&made, "url")?.to_owned(),
        share_url: String::new().into(),
    };
    print::output(&preview.url);
    let (status, _) = visit(stack, &preview.url)?;
    ensure!(status == 401, "without a token it answered {status}");
    Ok((preview, "it has an address, and without a token that answers 401".to_owned()))
}

pub(super) fn share(stack: &Stack, preview: &Preview) -> Step<()> {
    let body = json!({ "expires_in_sec": 600 });
    print::command(&stack.tenant().shown("POST", &preview.share_path(), Some(&body)));
    let answer = stack.tenant().call("POST", &preview.share_path(), Some(&body))?;
    let url = text(&answer.body, "share_url")?.to_owned();
    let page = poll::until("the server in the sandbox", SERVER_DEADLINE, || {
        let (status, page) = browser::fetch(stack, &url)?;
        ensure!(matches!(status, 200 | 502), "with the token it answered {status}: {page}");
        Ok((status == 200).then_some(page))
    })?;
    print::command(&browser::shown(stack, &url));
    print::output(&page);
    ensure!(page.trim_end() == PAGE, "the page is another one: {page}");
    *preview.share_url.borrow_mut() = url;
    Ok(((), "with the token the sandbox's own server answers, over HTTPS".to_owned()))
}

pub(super) fn revoke(stack: &Stack, preview: &Preview) -> Step<()> {
    call(stack.tenant(), "DELETE", &preview.share_path(), None)?;
    let url = preview.share_url.borrow().clone();
    print::command(&browser::shown(stack, &url));
    let status = poll::until("the share to be revoked", REVOKE_DEADLINE, || {
        let (status, _) = browser::fetch(stack, &url)?;
        Ok((status != 200).then_some(status))
    })?;
    print::output(&status.to_string());
    ensure!(status == 401, "a revoked share answered {status}");
    Ok(((), "the same link answers 401".to_owned()))
}

/// A fetch, printed as a person would type it.
fn visit(stack: &Stack, url: &str) -> anyhow::Result<(u16, String)> {
    print::command(&browser::shown(stack, url));
    browser::fetch(stack, url)
}
