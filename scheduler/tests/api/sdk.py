"""Drives the unmodified miosa SDK against a server and prints one line per thing that held."""

import os
import sys
import tempfile
import pathlib

import miosa

client = miosa.Miosa(api_key=os.environ["MIOSA_API_KEY"], base_url=os.environ["MIOSA_BASE_URL"])


def held(name, condition, shown=""):
    if not condition:
        sys.exit(f"FAILED {name}: {shown!r}")
    print(f"ok {name}")


sandbox = client.sandboxes.create(
    name="From the SDK", cpu_count=1, memory_mb=256, disk_size_mb=512, external_user_id="user_42",
    external_workspace_id="clinic1", metadata={"plan": "pro"}, tags=["sdk"], timeout_sec=600, wait=20,
)
held("create", sandbox.id.startswith("sbx_") and sandbox.state == "running", sandbox.data)
held("attribution", client.sandboxes.get(sandbox.id).external_user_id == "user_42")
held("ready", sandbox.ready and sandbox.data["tags"] == ["sdk"], sandbox.data)
listed = client.sandboxes.list(external_user_id="user_42")
held("list", [one.id for one in listed] == [sandbox.id], listed)
held("list other", client.sandboxes.list(external_user_id="nobody") == [])

result = sandbox.exec("echo out; echo err >&2; exit 3")
held("exec", (result.stdout, result.stderr, result.exit_code) == ("out\n", "err\n", 3), result)
events = list(sandbox.exec.stream("printf 'a\\n\\342\\200\\250b\\n'; exit 4"))
lines = [event.data["line"] for event in events if event.type == "stdout"]
held("exec stream", lines == ["a", "\u2028b"], lines)
held("exec stream exit", events[-1].type == "exit" and events[-1].data["exit_code"] == 4, events)

sandbox.files.write("/workspace/deep/a.json", '{"a": 1}')
held("read", sandbox.files.read("/workspace/deep/a.json") == b'{"a": 1}')
held("stat", sandbox.files.stat("/workspace/deep/a.json")["size"] == 8)
with tempfile.TemporaryDirectory() as directory:
    path = pathlib.Path(directory) / "local.bin"
    path.write_bytes(bytes(range(256)))
    sandbox.files.upload("/workspace/local.bin", path)
held("upload", sandbox.download("/workspace/local.bin") == bytes(range(256)))
names = [entry["name"] for entry in sandbox.files.list("/workspace")["entries"]]
held("list files", names == ["deep", "local.bin"], names)
held("tree", sandbox.files.tree("/workspace")["children"][0]["type"] == "dir")
written = sandbox.files.write_many([{"path": "/workspace/b", "content": "b"}])
held("write many", written["written"][0]["size_bytes"] == 1, written)
try:
    sandbox.files.read("/workspace/none")
    held("missing file", False)
except miosa.NotFoundError:
    held("missing file", True)

process = sandbox.processes.start("echo started; exec sleep 60", name="server")
held("process", int(process["pid"]) > 0 and process["running"], process)
held("processes", any(one["pid"] == process["pid"] for one in sandbox.processes.list()))
sandbox.processes.stop(process["pid"])
held("env", [one["key"] for one in sandbox.env.set([{"key": "A", "value": "1"}])] == ["A"])
held("env in exec", sandbox.exec("echo $A").stdout == "1\n")
sandbox.env.delete("A")

preview = sandbox.previews.create(port=3000, label="app")
held("preview", preview["visibility"] == "private" and preview["external_user_id"] == "user_42", preview)
share = sandbox.previews.share(preview["id"], ttl_seconds=900)
held("share", share["preview_token"].startswith("miosa_pv_") and share["data"]["id"] == preview["id"], list(share))
held("share url", share["preview_token"] in share["share_url"])
sandbox.previews.revoke_share(preview["id"])
held("expose", sandbox.expose(8080).startswith("https://"))

secret = client.secrets.set(
    name="OPENAI_API_KEY", value="sk-0123456789abcdef", scope="external_user", external_user_id="user_42",
    expose_as_env="OPENAI_API_KEY",
)
held("secret", secret["status"] == "active" and "value" not in secret, secret)
held("placeholder", "MIOSA" in sandbox.exec("echo $OPENAI_API_KEY").stdout)
held("secrets", [one["id"] for one in client.secrets.list(external_user_id="user_42")] == [secret["id"]])
held("audit", client.audit.list(since="7d", external_user_id="user_42") == [])
issued = [row for row in client.audit_log.list() if row["action"] == "preview.share_token.issued"]
held("audit log", issued[0]["metadata"]["token_prefix"] == share["preview_token"][:12], issued)
usage = client.usage.get(group_by="external_user_id")
held("usage", usage["results"][0]["external_user_id"] == "user_42", usage)
held("usage summary", client.usage.current()["sandbox_seconds"] >= 0)

updated = client.sandboxes.get(sandbox.id).update(name="Renamed", tags=["x"])
held("update", (updated or sandbox).id == sandbox.id)
held("by name", client.sandboxes.get_or_create("Renamed").id == sandbox.id)
paused = client.sandboxes.get(sandbox.id)
paused.pause()
held("pause", client.sandboxes.get(sandbox.id).state == "paused")
client.sandboxes.get(sandbox.id).resume()
held("resume", client.sandboxes.get(sandbox.id).state == "running")
try:
    client.sandboxes.create(slug=client.sandboxes.get(sandbox.id).slug, size="xs")
    held("slug conflict", False)
except miosa.MiosaError as error:
    held("slug conflict", error.status_code == 409 and error.code == "slug_conflict", vars(error))
try:
    client.sandboxes.get("sbx_01d39zy06fgsctvn4t2v9pkhfz")
    held("absent", False)
except miosa.NotFoundError as error:
    held("absent", error.request_id.startswith("req_"), vars(error))
client.sandboxes.get(sandbox.id).destroy()
held("destroy", client.sandboxes.list(external_user_id="user_42") == [])
print("done")
