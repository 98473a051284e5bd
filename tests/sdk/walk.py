"""One walk through the SDK as its user writes it, with the sync or the async client: walk.py sync|async URL VALUE

URL is a server that guests may call and that answers {"ok":true}; VALUE a credential that only it may get.
Prints the placeholder the sandbox saw on the last line.
"""

import asyncio
import inspect
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

from miosa import AsyncMiosa, Miosa

USER = "user 7@acme.example"
LABELS = {"external_workspace_id": "ws-1", "external_user_id": USER, "external_project_id": "prj-1"}
PAGE = "served by the sandbox"
PORT = 8123


async def done(value):
    """The sync client answers at once, the async one with an awaitable."""
    return await value if inspect.isawaitable(value) else value


async def eventually(what, probe, deadline_s=30):
    end = time.monotonic() + deadline_s
    while True:
        found = await done(probe())
        if found:
            return found
        assert time.monotonic() < end, f"waited {deadline_s} s for {what}"
        await asyncio.sleep(0.1)


def fetch(url):
    """Like a browser: keeps the cookie across the redirect that takes the token out of the address."""
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    try:
        with browser.open(url, timeout=20) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, ""


async def commands_and_files(sandbox):
    result = await done(sandbox.commands.run("echo out; echo err >&2; exit 3"))
    assert (result.stdout.strip(), result.stderr.strip(), result.exit_code) == ("out", "err", 3), result
    result = await done(sandbox.commands.run("python3 -c 'print(21 * 2)'", {"timeout": 30}))
    assert result.stdout.strip() == "42", result

    content = '{"kind": "json", "text": "ä"}'
    await done(sandbox.files.write("/workspace/index.json", content))
    assert await done(sandbox.files.read_text("/workspace/index.json")) == content
    assert "index.json" in str(await done(sandbox.files.list("/workspace")))
    stat = await done(sandbox.files.stat("/workspace/index.json"))
    assert stat["size"] == len(content.encode()), stat


async def previews(sandbox):
    await done(sandbox.commands.run(
        f"mkdir -p /tmp/site && cd /tmp/site && echo '{PAGE}' > index.html && "
        f"nohup python3 -m http.server {PORT} >/tmp/server.log 2>&1 &", {"timeout": 10}))
    url = await done(sandbox.preview.expose(PORT))
    assert url.startswith("https://"), url
    await eventually("the exposed page", lambda: fetch(url)[0] == 200)
    assert fetch(url)[1].strip() == PAGE

    private = await done(sandbox.previews.create(port=PORT + 1, label="private"))
    assert private["visibility"] == "private", private
    assert fetch(private["url"])[0] == 401
    await done(sandbox.commands.run(
        f"cd /tmp/site && nohup python3 -m http.server {PORT + 1} >/tmp/private.log 2>&1 &", {"timeout": 10}))
    share = await done(sandbox.previews.share(private["id"], ttl_seconds=600))
    assert share["preview_token"].startswith("miosa_pv_"), share.keys()
    await eventually("the shared page", lambda: fetch(share["share_url"])[0] == 200)
    assert any(row["id"] == private["id"] for row in await done(sandbox.previews.list()))
    await done(sandbox.previews.revoke_share(private["id"]))
    await eventually("the revocation", lambda: fetch(share["share_url"])[0] == 401, 5)


async def credential(client, sandbox, url, value):
    host = urllib.parse.urlsplit(url).hostname
    await done(client.secrets.set(
        name="SERVICE_KEY", value=value, scope="external_user", external_user_id=USER,
        expose_as_env="SERVICE_KEY", allowed_hosts=[host]))
    listed = await done(client.secrets.list(external_user_id=USER))
    assert any(row["name"] == "SERVICE_KEY" for row in listed), listed
    assert value not in str(listed)
    placeholder = (await done(sandbox.commands.run("printenv SERVICE_KEY"))).stdout.strip()
    assert placeholder and value not in placeholder
    result = await done(sandbox.commands.run(f'curl -sS -H "Authorization: Bearer $SERVICE_KEY" {url}', {"timeout": 60}))
    assert result.stdout.strip() == '{"ok":true}', result

    async def row():
        rows = await done(client.audit.list(resource_id=sandbox.id, since="7d"))
        return next((row for row in rows if row["host"] == host and row["status_code"] == 200), None)

    found = await eventually("the audit row", row)
    assert found["external_user_id"] == USER, found
    assert "SERVICE_KEY" in str(found["request_transforms"]) and value not in str(found), found
    return placeholder


async def usage(client):
    async def row():
        report = await done(client.usage.get(group_by="external_user_id", period="7d"))
        rows = report["results"]
        return next((row for row in rows if row["external_user_id"] == USER and row["sandbox_seconds"] > 0), None)

    await eventually("the usage of the user", row, 90)


async def walk(client, url, value):
    sandbox = await done(client.sandboxes.create(
        name="walk", cpu_count=1, memory_mb=256, disk_size_mb=1024, timeout_sec=600, wait=45,
        metadata={"run": "walk"}, tags=["walk"], **LABELS))
    assert sandbox.state == "running", sandbox.state
    for name, label in LABELS.items():
        assert sandbox.data[name] == label, sandbox.data
    found = await done(client.sandboxes.list(external_user_id=USER))
    assert [row.id for row in found] == [sandbox.id], found
    await commands_and_files(sandbox)
    await previews(sandbox)
    placeholder = await credential(client, sandbox, url, value)
    await done(sandbox.pause())
    await usage(client)
    await done(sandbox.destroy())

    async def gone():
        return not await done(client.sandboxes.list(external_user_id=USER))

    await eventually("the sandbox to be gone", gone)
    return placeholder


async def main():
    kind, url, value = sys.argv[1:]
    client = Miosa() if kind == "sync" else AsyncMiosa()
    try:
        placeholder = await walk(client, url, value)
    finally:
        await done(client.close())
    print(placeholder)


asyncio.run(main())
