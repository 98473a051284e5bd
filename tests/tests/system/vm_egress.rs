//! What a guest tries and may not do, from inside a real VM: nothing of it reaches the server it was meant for.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener};

use roost_tests::stack::tenant::Tenant;
use roost_tests::stack::{Allowed, Stack, Wish};
use roost_tests::upstream::{self, Upstream};
use serde_json::{Value, json};

/// Prints the status of an answer, or 000 where there is none.
const CURL: &str = "curl -sS --max-time 20 -o /dev/null -w '%{http_code}'";

#[test]
fn vm_egress_keeps_a_credential_and_a_request_where_they_belong() {
    let upstream = Upstream::start().unwrap();
    let wish = Wish { upstream: Some(Allowed::from(&upstream)), ..Wish::default() };
    let stack = Stack::for_test_with("egress", &wish).unwrap();
    let tenant = stack.tenant();
    let body = json!({ "external_user_id": "u1", "cpu_count": 1, "memory_mb": 256, "disk_size_mb": 1024 });
    let sandbox = post(tenant, "/sandboxes?wait=60", &body);
    let id = sandbox["id"].as_str().unwrap();
    for (name, host) in [("OWN", upstream::NAME), ("ELSEWHERE", "elsewhere.roost.test")] {
        let secret = json!({
            "name": name, "value": format!("value-of-{name}-77c1"), "scope": "external_user",
            "external_user_id": "u1", "expose_as_env": name, "allowed_hosts": [host],
        });
        post(tenant, "/egress/secrets", &secret);
    }
    let url = upstream.url("/");
    let status = |options: &str| shell(tenant, id, &format!("{CURL} {options} || true"));

    assert_eq!(status(&format!("-H \"X-Api-Key: $OWN\" {url}")), "200", "positive control");
    assert_eq!(upstream.seen().len(), 1, "positive control");
    assert_eq!(status(&format!("-H \"X-Api-Key: $ELSEWHERE\" {url}")), "403", "a secret of another host");
    // The form of a placeholder, with other digits than this sandbox's.
    let forged = "X-Api-Key: ${OWN%??????}AAAAAA";
    assert_eq!(status(&format!("-H \"{forged}\" {url}")), "403", "a placeholder of another sandbox");
    assert_eq!(
        status(&format!("-H 'Host: elsewhere.roost.test' {url}")),
        "421",
        "a request for another host"
    );
    assert_eq!(upstream.seen().len(), 1, "nothing of that reached the server: {:?}", upstream.seen());

    // An operator let the guest go to one port of a private address; this is another one.
    let private = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    private.set_nonblocking(true).unwrap();
    let other_port = format!("http://{}:{}/", upstream::NAME, private.local_addr().unwrap().port());
    assert_eq!(status(&other_port), "403", "a private address");
    assert_eq!(private.accept().unwrap_err().kind(), ErrorKind::WouldBlock, "nobody dialled it");
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
