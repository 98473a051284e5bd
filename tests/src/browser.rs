//! A visitor of previews, as far as curl is a browser: keeps cookies, follows redirects, trusts the preview root.

use anyhow::Context;

use crate::program;
use crate::stack::Stack;

/// The status and the page, after the redirect that takes the token out of the address.
pub fn fetch(stack: &Stack, url: &str) -> anyhow::Result<(u16, String)> {
    let mut command = program::command("curl");
    command.args(["-sS", "-L", "-b", "", "--max-time", "20", "-w", "%{http_code}", "--cacert"]);
    command.arg(stack.place().preview_root()).arg(url);
    let text = program::run(command, b"")?.success(&format!("curl {url}"))?;
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    let (page, status) =
        text.split_at_checked(text.len().saturating_sub(3)).context("curl printed no status")?;
    Ok((status.parse().context("curl printed no status")?, page.to_owned()))
}

/// The same as a person would type it.
pub fn shown(stack: &Stack, url: &str) -> String {
    format!("curl -L -b '' --cacert {} '{url}'", stack.place().preview_root().display())
}
