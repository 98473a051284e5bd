//! Clients people use go out through interception, and servers on loopback alone are seen through previews.

use std::path::Path;
use std::time::Duration;

use roost_tests::stack::tenant::Tenant;
use roost_tests::stack::{Allowed, Stack, Wish};
use roost_tests::upstream::Upstream;
use roost_tests::{browser, poll, program};
use serde_json::{Value, json};

/// Has the clients that the default template lacks.
const TEMPLATE: &str = "miosa-sandbox-clients";
const SERVER_DEADLINE: Duration = Duration::from_secs(30);
const PAGE: &str = "from loopback";

/// A Git repository and a package index, as files.
const MAKE_SITE: &str = r#"
set -e
export HOME=$PWD GIT_CONFIG_NOSYSTEM=1
git init -q work && cd work
echo readme > README
git add README
git -c user.name=t -c user.email=t@example.com commit -qm first
cd .. && git clone -q --bare work repo.git && git -C repo.git update-server-info
mkdir -p simple/roost-sample
python3 - <<'PYTHON'
import zipfile
wheel = "roost_sample-1.0-py3-none-any.whl"
with zipfile.ZipFile(f"simple/roost-sample/{wheel}", "w") as file:
    info = "roost_sample-1.0.dist-info"
    file.writestr("roost_sample.py", "answer = 42\n")
    file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: roost-sample\nVersion: 1.0\n")
    file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    file.writestr(f"{info}/RECORD", "")
with open("simple/roost-sample/index.html", "w") as file:
    file.write(f'<!DOCTYPE html><html><body><a href="{wheel}">{wheel}</a></body></html>')
PYTHON
"#;

#[test]
fn vm_clients_go_out_through_interception_and_trust_nothing_else() {
    let site = Path::new(env!("CARGO_TARGET_TMPDIR")).join("site");
    make_site(&site);
    let upstream = Upstream::serving(&site).unwrap();
    let stack = Stack::for_test_with(
        "clients",
        &Wish { upstream: Some(Allowed::from(&upstream)), ..Wish::default() },
    )
    .unwrap();
    let id = create(stack.tenant());
    let run = |text: &str| shell(stack.tenant(), &id, text);
    let good = |text: &str| {
        let result = run(text);
        assert_eq!(result["exit_code"], 0, "{text}: {result}");
        result["stdout"].as_str().unwrap().trim().to_owned()
    };

    let readme = upstream.url("/work/README");
    assert_eq!(good(&format!("curl -sS --http2 -w ' %{{http_version}}' {readme}")), "readme\n 2");
    let node = format!("fetch('{readme}').then(a => a.text()).then(console.log)");
    assert_eq!(good(&format!("node -e \"{node}\"")), "readme");
    assert_eq!(
        good(&format!("git clone -q {} /tmp/repo && cat /tmp/repo/README", upstream.url("/repo.git"))),
        "readme"
    );
    let index = upstream.url("/simple");
    good(&format!("pip download -q --disable-pip-version-check --no-deps -d /tmp/w -i {index} roost-sample"));
    assert_eq!(good("ls /tmp/w"), "roost_sample-1.0-py3-none-any.whl");
    let python = format!("import urllib.request as u; print(u.urlopen('{readme}').read().decode())");
    assert_eq!(good(&format!("python3 -c \"{python}\"")), "readme");

    // The same calls with the roots that are the image's own, and none of the sandbox's.
    let untrusting = [
        format!("curl -sS {readme}"),
        format!("node -e \"{node}\""),
        format!("git clone -q {} /tmp/untrusted", upstream.url("/repo.git")),
        format!("python3 -c \"{python}\""),
    ];
    for client in untrusting {
        let text = format!(
            "sudo unshare -m sh -c 'umount -l /etc/ssl/certs && test -s /etc/ssl/certs/ca-certificates.crt && \
             exec env -i PATH=$PATH HOME=/tmp sh' <<'EOF'\n{client} && echo trusted\nEOF"
        );
        let result = run(&text);
        assert_ne!(result["exit_code"], 0, "{client}: {result}");
        let complaint = result["stderr"].as_str().unwrap().to_lowercase();
        assert!(
            complaint.contains("certificate") || complaint.contains("fetch failed"),
            "{client}: {result}"
        );
    }
    stack.finish().unwrap();
}

#[test]
fn vm_previews_reach_servers_on_either_loopback() {
    let stack = Stack::for_test("loopback").unwrap();
    let tenant = stack.tenant();
    let id = create(tenant);
    let start = format!("mkdir -p /tmp/site && cd /tmp/site && echo '{PAGE}' > index.html");
    assert_eq!(shell(tenant, &id, &start)["exit_code"], 0);
    for (port, address) in [(8001, "127.0.0.1"), (8002, "::1")] {
        let serve =
            format!("cd /tmp/site && (python3 -m http.server {port} --bind {address} >/dev/null 2>&1 &)");
        assert_eq!(shell(tenant, &id, &serve)["exit_code"], 0);
        let exposed = post(tenant, &format!("/sandboxes/{id}/expose"), &json!({ "port": port }));
        let url = exposed["url"].as_str().unwrap();
        let page = poll::until(&format!("the server on {address}"), SERVER_DEADLINE, || {
            let (status, page) = browser::fetch(&stack, url)?;
            Ok((status == 200).then_some(page))
        });
        assert_eq!(page.unwrap().trim(), PAGE, "{address}");
    }
    stack.finish().unwrap();
}

fn make_site(directory: &Path) {
    let _ = std::fs::remove_dir_all(directory);
    std::fs::create_dir_all(directory).unwrap();
    let mut make = program::command("sh");
    make.arg("-c").arg(MAKE_SITE).current_dir(directory);
    program::run(make, b"").and_then(|outcome| outcome.success("making the site")).unwrap();
}

fn create(tenant: &Tenant) -> String {
    let body = json!({ "template_id": TEMPLATE, "cpu_count": 1, "memory_mb": 512, "disk_size_mb": 1024 });
    post(tenant, "/sandboxes?wait=90", &body)["id"].as_str().unwrap().to_owned()
}

fn shell(tenant: &Tenant, id: &str, text: &str) -> Value {
    post(tenant, &format!("/sandboxes/{id}/exec"), &json!({ "command": text, "timeout": 90 }))
}

fn post(tenant: &Tenant, path: &str, body: &Value) -> Value {
    tenant.call("POST", path, Some(body)).and_then(|answer| answer.data()).expect(path)
}
