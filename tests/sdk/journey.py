"""The public `miosa` SDK, unmodified, through one whole life of a sandbox: sync, then async.

Environment: MIOSA_BASE_URL, MIOSA_API_KEY, SSL_CERT_FILE as for any user of the SDK, and of the test's own HTTPS server
ROOST_UPSTREAM_NAME, ROOST_UPSTREAM_PORT, ROOST_UPSTREAM_CERT, ROOST_UPSTREAM_KEY. Exits non-zero at the first thing that
is not so.
"""

import asyncio
import inspect
import os
import secrets
import ssl
import sys
import time
import urllib.error
import urllib.request

from miosa import AsyncMiosa, Miosa

import upstream

NAME = os.environ["ROOST_UPSTREAM_NAME"]
PORT = int(os.environ["ROOST_UPSTREAM_PORT"])
SERVER_START_S = 30


def check(holds, what, seen=None):
    if not holds:
        sys.exit(f"journey: {what} does not hold; seen: {seen!r}")
    print(f"ok {what}", flush=True)


def fetch(url):
    """Status and body, as a browser without credentials gets them."""
    try:
        with urllib.request.urlopen(url, timeout=20, context=ssl.create_default_context()) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def fetch_when_up(url):
    deadline = time.monotonic() + SERVER_START_S
    while True:
        status, body = fetch(url)
        if status != 502 or time.monotonic() > deadline:
            return status, body
        time.sleep(0.2)


async def call(function, *arguments, **named):
    """Calls either client's method: the sync one returns, the async one is awaited."""
    result = function(*arguments, **named)
    return await result if inspect.isawaitable(result) else result


async def journey(client, kind, seen):
    user = f"user_{kind}_{secrets.token_hex(4)}@clinic.example"
    box = await call(
        client.sandboxes.create,
        name=f"journey {kind}",
        external_user_id=user,
        external_workspace_id="clinic1",
        external_project_id="proj_1",
        cpu_count=1,
        memory_mb=256,
        disk_size_mb=1024,
        timeout_sec=600,
    )
    try:
        await call(box.wait_until_ready, timeout=60)
        await run_code(box)
        await files(box)
        await previews(box)
        await credential(client, box, user, seen)
        check((await call(client.sandboxes.get, box.id)).external_user_id == user, f"{kind}: attribution is read back")
        listed = await call(client.sandboxes.list, external_user_id=user)
        check([found.id for found in listed] == [box.id], f"{kind}: listed by the caller's own id", listed)
        await usage(client, box, user)
    finally:
        await call(box.destroy)
    gone = [found.id for found in await call(client.sandboxes.list, external_user_id=user)]
    check(gone == [], f"{kind}: nothing is left on the list", gone)


async def run_code(box):
    result = await call(box.commands.run, "echo $((6*7)); echo oops >&2; exit 3")
    check(result.exit_code == 3 and "42" in result.stdout and "oops" in result.stderr, "a command runs", result)
    result = await call(box.exec, "seq 200000; (sleep 60 &)")
    check(result.stdout.split()[-1] == "200000", "a background child holds nobody up", result.stdout[-40:])


async def files(box):
    body = "hello from the SDK \u2028 \u00e9\n"
    await call(box.files.write, "/workspace/note.txt", body)
    check(await call(box.files.read, "/workspace/note.txt") in (body, body.encode()), "a file is read back")
    names = [entry["name"] for entry in (await call(box.list_files, "/workspace"))["entries"]]
    check("note.txt" in names, "it is listed", names)
    check((await call(box.stat_file, "/workspace/note.txt"))["size"] == len(body.encode()), "its size is told")


async def previews(box):
    await call(box.exec, "cd /workspace && nohup python3 -m http.server --bind 127.0.0.1 3000 >/dev/null 2>&1 &")
    url = await call(box.preview.expose, 3000)
    status, body = await asyncio.to_thread(fetch_when_up, url)
    check(status == 200 and b"note.txt" in body, "an exposed port is public", (url, status, body[:200]))
    await call(box.exec, "cd /workspace && nohup python3 -m http.server --bind ::1 3001 >/dev/null 2>&1 &")
    preview = await call(box.previews.create, port=3001)
    check((await asyncio.to_thread(fetch, preview["url"]))[0] == 401, "a preview is private")
    share = await call(box.previews.share, preview["id"])
    shared = share["share_url"]
    status, body = await asyncio.to_thread(fetch_when_up, shared)
    check(status == 200 and b"note.txt" in body, "a share opens it", (status, body[:200]))
    await call(box.previews.revoke_share, preview["id"])
    deadline = time.monotonic() + 5
    status = 200
    while status == 200 and time.monotonic() < deadline:
        status = (await asyncio.to_thread(fetch, shared))[0]
    check(status == 401, "a withdrawn share is dead", status)


async def credential(client, box, user, seen):
    value = f"sk-journey-{secrets.token_hex(16)}"
    await call(
        client.secrets.set,
        name="journey_key",
        value=value,
        scope="external_user",
        external_user_id=user,
        expose_as_env="JOURNEY_API_KEY",
        allowed_hosts=[NAME],
    )
    inside = (await call(box.exec, "printf %s \"$JOURNEY_API_KEY\"")).stdout
    check(inside and value not in inside, "the guest holds a placeholder", inside)
    command = f'curl -sS --fail-with-body -H "Authorization: Bearer $JOURNEY_API_KEY" https://{NAME}:{PORT}/v1/models'
    result = await call(box.exec, command)
    check(result.exit_code == 0, "the guest's call succeeds", result)
    sent = [facts for facts in seen if facts["path"] == "/v1/models"][-1]["authorization"]
    check(sent == f"Bearer {value}", "the upstream got the value")
    check(value not in result.stdout + result.stderr, "the guest did not")
    deadline = time.monotonic() + 10
    rows = []
    while not rows and time.monotonic() < deadline:
        found = await call(client.audit.list, since="7d", external_user_id=user)
        rows = [row for row in found if row.get("path") == "/v1/models" and row.get("status_code") == 200]
    check(len(rows) == 1, "the call is one audit row", rows)
    check("journey_key" in str(rows[0]) or "JOURNEY_API_KEY" in str(rows[0]), "it names the credential", rows[0])
    check(value not in str(rows), "it does not hold the value")


async def usage(client, box, user):
    report = await call(client.usage.get, group_by="external_user_id", external_user_id=user, period="7d")
    rows = [row for row in report["results"] if row["external_user_id"] == user]
    check(rows and rows[0]["sandbox_seconds"] > 0, "a running sandbox is on its user's usage report", report)
    own = await call(box.usage)
    check(own["runtime_sec"] >= 0 and own["sandbox_id"] == box.id, "and on its own", own)


async def main():
    seen = []
    upstream.serve("127.0.0.1", PORT, os.environ["ROOST_UPSTREAM_CERT"], os.environ["ROOST_UPSTREAM_KEY"], seen.append)
    with Miosa() as client:
        await journey(client, "sync", seen)
    async with AsyncMiosa() as client:
        await journey(client, "async", seen)
    print("journey complete")


asyncio.run(main())
