//! A credential used by a sandbox is nowhere but with its server and in egress's memory.

use roost_tests::stack::{Allowed, Stack, Wish};
use roost_tests::upstream::{self, Upstream};
use roost_tests::{scan, stack::tenant::Tenant};
use serde_json::{Value, json};

const VALUE: &str = "s3cr3t-of-acme-5d1c0b7f";

#[test]
fn vm_secret_is_in_no_guest_no_file_and_no_other_process() {
    let upstream = Upstream::start().unwrap();
    let stack = Stack::for_test_with("secret", &Wish { upstream: Some(Allowed::from(&upstream)) }).unwrap();
    let tenant = stack.tenant();
    let body = json!({ "external_user_id": "u1", "cpu_count": 1, "memory_mb": 256, "disk_size_mb": 1024 });
    let sandbox = post(tenant, "/sandboxes?wait=60", &body);
    let id = sandbox["id"].as_str().unwrap();
    let secret = json!({
        "name": "KEY", "value": VALUE, "scope": "external_user", "external_user_id": "u1",
        "expose_as_env": "KEY", "allowed_hosts": [upstream::NAME],
    });
    post(tenant, "/egress/secrets", &secret);

    // Swapped on the way out; kept on the guest's disk and in its memory as what the guest has of it.
    let text = format!(
        "curl -sS -H \"Authorization: Bearer $KEY\" {} && printenv KEY > /workspace/key && sync && (sleep 600 &)",
        upstream.url("/swap")
    );
    assert_eq!(shell(tenant, id, &text), upstream::ANSWER);
    let placeholder = shell(tenant, id, "printenv KEY");
    let seen = upstream.seen();
    assert_eq!(seen[0].header("authorization"), Some(format!("Bearer {VALUE}").as_str()), "positive control");

    let vmm = stack.agent().unwrap().inspect(id).unwrap()["execution"]["vmm_pid"].as_i64().unwrap();
    assert!(
        scan::is_in_memory(vmm, &placeholder).unwrap(),
        "positive control: the guest knows its placeholder"
    );
    assert!(!scan::is_in_memory(vmm, VALUE).unwrap(), "the value is in the guest's memory or the VMM's");
    for process in ["agent", "edge"] {
        let pid = stack.process(process).unwrap().pid().unwrap().as_raw().into();
        assert!(!scan::is_in_memory(pid, VALUE).unwrap(), "the value is in the memory of {process}");
    }

    let place = stack.place();
    let on_disk = scan::files_with(&place.root.join("agent"), &placeholder).unwrap();
    assert!(!on_disk.is_empty(), "positive control: the placeholder is on the sandbox's disk");
    std::fs::write(place.root.join("planted"), VALUE).unwrap();
    let planted = scan::files_with(&place.root, VALUE).unwrap();
    assert_eq!(planted.len(), 1, "besides the planted file, the value is in {planted:?}");
    assert_eq!(scan::files_with(&place.run_dir, VALUE).unwrap(), Vec::<String>::new());
    stack.finish().unwrap();
}

fn post(tenant: &Tenant, path: &str, body: &Value) -> Value {
    tenant.call("POST", path, Some(body)).and_then(|answer| answer.data()).expect(path)
}

fn shell(tenant: &Tenant, id: &str, text: &str) -> String {
    let result = post(tenant, &format!("/sandboxes/{id}/exec"), &json!({ "command": text }));
    assert_eq!(result["exit_code"], 0, "{text}: {result}");
    result["stdout"].as_str().expect("stdout").trim_end().to_owned()
}
