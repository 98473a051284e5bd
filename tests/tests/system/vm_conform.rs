//! The running API answers as its document says, whatever it is sent; and the check of that would notice.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use roost_tests::conform::{Schemathesis, Wish};
use roost_tests::stack::Stack;
use roost_tests::stack::tenant::Tenant;
use serde_json::{Value, json};

/// Streams that end only when the reader goes.
const ENDLESS: &[&str] = &["stream_events", "stream_sandbox_events", "watch_files", "stream_process"];
/// Makes real VMs or lifts what keeps it from that: on its own, where nothing more may be made.
const MAKES: &[&str] = &["create_sandbox", "set_tenant_quota", "remove_tenant_quota"];
const CASES_MIN: usize = 2000;
const SERVED_MIN: usize = 60;

fn document() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/api/openapi.json")
}

fn text_of(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn post(tenant: &Tenant, path: &str, body: &Value) -> Value {
    tenant.call("POST", path, Some(body)).and_then(|answer| answer.data()).expect(path)
}

/// One of everything a path can name.
fn names(tenant: &Tenant) -> BTreeMap<&'static str, Value> {
    let small = json!({ "name": "conform", "cpu_count": 1, "memory_mb": 256, "disk_size_mb": 1024 });
    let sandbox = post(tenant, "/sandboxes?wait=100", &small);
    let id = text_of(&sandbox["id"]);
    let at = |rest: &str| format!("/sandboxes/{id}{rest}");
    let preview = post(tenant, &at("/previews"), &json!({ "port": 3000 }));
    // Its command is also tried as one, as everything that answers have shown.
    let process = post(tenant, &at("/processes"), &json!({ "command": "echo conform" }));
    let secret = post(tenant, "/egress/secrets", &json!({ "name": "K", "value": "0123456789abcdef" }));
    let key = post(tenant, "/api-keys", &json!({ "name": "spare", "scopes": ["usage:read"] }));
    let project = post(tenant, "/projects", &json!({ "name": "p" }));
    let base = "/api/v1";
    let own = |path: &str, names: Value| (&*format!("{base}{path}").leak(), names);
    BTreeMap::from([
        own("/sandboxes/by-name/", json!({ "name": "conform" })),
        own(
            "/sandboxes/{id}",
            json!({ "id": id, "preview_id": preview["id"], "pid": process["pid"].to_string(), "path": "etc/hostname" }),
        ),
        own("/previews/", json!({ "preview_id": preview["id"] })),
        own("/egress/secrets/", json!({ "id": secret["id"] })),
        own("/api-keys/", json!({ "id": key["id"] })),
        own("/projects/", json!({ "id": project["id"] })),
        own("/workspaces/", json!({ "id": sandbox["workspace_id"] })),
        own("/sandbox-templates/", json!({ "id": "miosa-sandbox" })),
    ])
}

#[test]
fn vm_api_answers_as_documented_whatever_it_is_sent() {
    let tool = Schemathesis::ensure().unwrap();
    let stack = Stack::for_test("conform").unwrap();
    let tenant = stack.tenant();
    let names = names(tenant);
    let (document, folder) = (document(), stack.place().root.clone());
    let wish = |only, without, report: &str| Wish {
        document: &document,
        origin: &tenant.origin,
        key: &tenant.key,
        only,
        without,
        names: names.clone(),
        report: folder.join(report),
    };

    let without = [ENDLESS, MAKES].concat();
    let most = tool.run(&wish(&[], &without, "most.ndjson")).unwrap();
    assert!(most.clean, "{}", most.said);

    let full = json!({ "max_sandboxes": 1 });
    tenant.call("PUT", "/tenant/quota", Some(&full)).and_then(|answer| answer.data()).unwrap();
    let makes = tool.run(&wish(&["create_sandbox"], &[], "makes.ndjson")).unwrap();
    assert!(makes.clean, "{}", makes.said);
    assert_eq!(tenant.list().unwrap().len(), 1, "a create got past the quota");
    let quota = tool.run(&wish(&MAKES[1..], &[], "quota.ndjson")).unwrap();
    assert!(quota.clean, "{}", quota.said);

    let cases = most.cases + makes.cases + quota.cases;
    eprintln!("{cases} cases, {} of {} operations served", most.served.len(), most.operations.len());
    // Refusals alone would say little.
    assert!(most.served.len() >= SERVED_MIN, "only {:?} were ever served", most.served);
    assert!(cases >= CASES_MIN, "only {cases} cases");
    let tried: BTreeSet<String> =
        [most.operations, makes.operations, quota.operations].into_iter().flatten().collect();
    assert_eq!(tried, documented(&document, ENDLESS));

    // A document that promises what is not there.
    let mut lying: Value = serde_json::from_slice(&std::fs::read(&document).unwrap()).unwrap();
    let promised = lying.pointer_mut("/components/schemas/Data_Identity/properties/data/required").unwrap();
    promised.as_array_mut().unwrap().push(json!("shoe_size"));
    let path = folder.join("lying.json");
    std::fs::write(&path, lying.to_string()).unwrap();
    let lied = tool.run(&Wish { document: &path, ..wish(&["who_am_i"], &[], "lying.ndjson") }).unwrap();
    assert!(!lied.clean && lied.said.contains("shoe_size"), "{}", lied.said);
    stack.finish().unwrap();
}

/// Every operation of the document but those, as `GET /path`.
fn documented(document: &Path, but: &[&str]) -> BTreeSet<String> {
    let document: Value = serde_json::from_slice(&std::fs::read(document).unwrap()).unwrap();
    let paths = document["paths"].as_object().unwrap();
    let all = paths.iter().flat_map(|(path, item)| {
        let operations = item.as_object().unwrap().iter();
        operations.filter_map(move |(method, operation)| {
            let id = operation["operationId"].as_str()?;
            (!but.contains(&id)).then(|| format!("{} {path}", method.to_uppercase()))
        })
    });
    all.collect()
}
