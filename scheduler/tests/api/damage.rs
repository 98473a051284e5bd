//! Every operation of the document with each of its parameters and fields damaged in every way that is damage.
//!
//! The cases come out of the document, so an operation added to it is covered at once. Where the document forbids a
//! value the answer must be a refusal that names the place; everywhere it must be one that the document has and none
//! that blames the server.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use axum::body::{Body, Bytes};
use http::{Method, Request};
use roost_scheduler::http::BASE;
use serde_json::{Map, Value, json};
use tower::ServiceExt;

use crate::engines::on_both;
use crate::tenancy;
use crate::world::{Answer, DOCUMENT, World, operations};

/// Fields whose text has no limit but the body's.
const UNLIMITED: &[&str] = &["command", "stdin", "content", "content_base64"];
/// Path parameters that are the caller's own names: any text is one, nothing needs to exist.
const FREE: &[&str] = &["external_user_id", "external_workspace_id"];
/// Taken without a look at it, since the scope of the request has no use for it.
const UNREAD: &[(&str, &str)] = &[("/egress/secrets", "workspace_id")];
const LONG: usize = 100_000;

/// A world, and what was found wrong in it: everything is tried before the test fails.
struct Lab {
    world: World,
    cases: Cell<usize>,
    findings: RefCell<Vec<String>>,
}

impl Lab {
    fn new(world: World) -> Self {
        Self { world, cases: Cell::new(0), findings: RefCell::default() }
    }

    fn expect(&self, holds: bool, finding: impl FnOnce() -> String) {
        if !holds {
            let finding: String = finding().chars().take(600).collect();
            self.findings.borrow_mut().push(finding);
        }
    }

    /// Fails unless enough was tried and nothing was found.
    fn finish(self, cases_min: usize) {
        let findings = self.findings.into_inner();
        assert!(findings.is_empty(), "{} findings:\n{}", findings.len(), findings.join("\n"));
        assert!(self.cases.get() >= cases_min, "only {} cases came out of the document", self.cases.get());
    }
}

/// One operation with everything in place.
struct Operation {
    method: Method,
    template: String,
    path: String,
    body: Option<Value>,
}

/// A good value for each field that some body cannot do without. A new one wants a line here.
fn good(field: &str, ids: &BTreeMap<&'static str, String>) -> Value {
    match field {
        "name" => json!("n"),
        "value" => json!("0123456789abcdef"),
        "secret_id" => json!(ids["secret_id"]),
        "resource_id" => json!(ids["/sandboxes/"]),
        "command" => json!("true"),
        "path" => json!("/workspace/damage"),
        "content" | "content_base64" => json!(""),
        "files" => json!([{ "path": "/workspace/damage", "content_base64": "" }]),
        "vars" => json!([{ "key": "A", "value": "1" }]),
        "key" => json!("A"),
        "tags" => json!(["a"]),
        "port" => json!(3000),
        other => panic!("the field {other} is needed by some body and has no good value here"),
    }
}

async fn all(world: &World) -> (Vec<Operation>, BTreeMap<&'static str, String>) {
    let mut ids = tenancy::ids(world).await;
    let spare = json!({ "name": "SPARE", "value": "0123456789abcdef" });
    let spare = world.post("/egress/secrets", spare).await.expect(201).data();
    ids.insert("secret_id", spare["id"].as_str().unwrap().to_owned());
    let made = operations().into_iter().map(|(method, template)| {
        let own = template
            .replace("/sandbox-templates/{id}", "/sandbox-templates/miosa-sandbox")
            .replace("{external_user_id}", "u")
            .replace("{external_workspace_id}", "w");
        let body = DOCUMENT.body_schema(method.as_str(), &template).map(|schema| {
            let required = schema["required"].as_array().cloned().unwrap_or_default();
            let fields = required.iter().map(|name| {
                let name = name.as_str().unwrap();
                (name.to_owned(), good(name, &ids))
            });
            Value::Object(fields.collect())
        });
        Operation { method, path: tenancy::fill(&own, &ids), template, body }
    });
    (made.collect(), ids)
}

impl Operation {
    fn place(&self) -> String {
        format!("{} {}", self.method, self.template)
    }

    /// Sends and checks what holds for every answer. Of a stream that opens only the head is looked at.
    async fn send(&self, lab: &Lab, path: &str, body: impl Into<Body>, what: &str) -> Answer {
        let has_body = self.body.is_some();
        let mut request = Request::builder().method(self.method.clone()).uri(format!("{BASE}{path}"));
        request = request.header("authorization", format!("Bearer {}", lab.world.key));
        if has_body {
            request = request.header("content-type", "application/json");
        }
        self.send_request(lab, request.body(body.into()).unwrap(), what).await
    }

    async fn send_request(&self, lab: &Lab, request: Request<Body>, what: &str) -> Answer {
        let path = request.uri().path().to_owned();
        let response = lab.world.router.clone().oneshot(request).await.unwrap();
        let (head, body) = response.into_parts();
        let streams = head.headers.get("content-type").is_some_and(|kind| kind == "text/event-stream");
        let bytes = match streams {
            true => Bytes::new(),
            false => axum::body::to_bytes(body, usize::MAX).await.unwrap(),
        };
        let answer = Answer { status: head.status.as_u16(), headers: head.headers, bytes };
        let place = format!("{} with {what}: {}", self.place(), answer.text());
        lab.cases.set(lab.cases.get() + 1);
        lab.expect(answer.status < 500, || place.clone());
        if !streams {
            DOCUMENT.check(self.method.as_str(), &path, &answer);
        }
        if answer.status >= 400 {
            teaches(lab, &answer, &place);
        }
        answer
    }

    async fn with_body(&self, lab: &Lab, body: &Value, what: &str) -> Answer {
        self.send(lab, &self.path, body.to_string(), what).await
    }
}

/// A person can act on it: words, and none of the server's own.
fn teaches(lab: &Lab, answer: &Answer, place: &str) {
    let message = answer.json()["error"]["message"].as_str().unwrap_or_default().to_owned();
    lab.expect(message.len() < 5000, || format!("{place} says {} bytes", message.len()));
    lab.expect(message.split_whitespace().count() >= 2, || format!("{place} says too little"));
    for jargon in
        ["u16", "u32", "u64", "i64", "f64", "struct ", "variant", "invalid type", "untagged", "sequence"]
    {
        lab.expect(!message.contains(jargon), || format!("{place} speaks of {jargon}"));
    }
}

fn refused(lab: &Lab, answer: &Answer, statuses: &[u16], named: &str, place: &str) {
    lab.expect(statuses.contains(&answer.status), || format!("{place}: {} {}", answer.status, answer.text()));
    if !["bad_request", "VALIDATION_FAILED"].contains(&answer.code().as_str()) {
        return;
    }
    let message = answer.json()["error"]["message"].as_str().unwrap_or_default().to_owned();
    // Of a variable it is the name that is told, not that it is its value.
    let is_named = message.contains(named) || (named == "value" && message.contains("vars."));
    lab.expect(is_named, || format!("{place} does not name {named}: {message}"));
}

#[test]
fn damaged_paths_are_refused() {
    on_both(|store| async move {
        let lab = Lab::new(World::on(store).await);
        damage_paths(&lab).await;
        lab.finish(500)
    });
}

async fn damage_paths(lab: &Lab) {
    let (all, _) = all(&lab.world).await;
    for operation in &all {
        let segments: Vec<&str> = operation.template.split('/').collect();
        for (at, segment) in segments.iter().enumerate().filter(|(_, segment)| segment.starts_with('{')) {
            let name = segment.trim_matches(['{', '}']);
            let long = "x".repeat(4000);
            for bad in
                ["%ff", "%00", "a%00b", "no-such", "%20", "..%2f..%2fetc", "%F0%9F%A6%86", "a%0ab", &long]
            {
                let mut path: Vec<&str> = operation.path.split('/').collect();
                path.truncate(path.len().min(segments.len()));
                path[at] = bad;
                let query = if operation.template.ends_with("/fs/download") { "?path=a" } else { "" };
                let path = path.join("/") + query;
                let body = operation.body.as_ref().map(Value::to_string).unwrap_or_default();
                let answer = operation.send(lab, &path, body, bad).await;
                let place = format!("{} with {name} {bad}", operation.place());
                let statuses: &[u16] = match bad {
                    "%ff" | "%00" | "a%00b" => &[400],
                    "a%0ab" => &[404, 422],
                    _ if FREE.contains(&name) => &[200, 204, 422],
                    _ => &[404, 422],
                };
                refused(lab, &answer, statuses, "", &place);
            }
        }
    }
}

#[test]
fn damaged_queries_are_refused() {
    on_both(|store| async move {
        let lab = Lab::new(World::on(store).await);
        damage_queries(&lab).await;
        lab.finish(500)
    });
}

async fn damage_queries(lab: &Lab) {
    let (all, _) = all(&lab.world).await;
    for operation in &all {
        let document = DOCUMENT.operation(operation.method.as_str(), &operation.template);
        let parameters = document["parameters"].as_array().cloned().unwrap_or_default();
        for parameter in parameters.iter().filter(|parameter| parameter["in"] == "query") {
            let name = parameter["name"].as_str().unwrap();
            let body = operation.body.as_ref().map(Value::to_string).unwrap_or_default();
            let long = "x".repeat(8000);
            let typed = parameter["schema"]["type"] != "string";
            for bad in
                ["%ff", "%00", "a%00b", "x", "-1", "1.5", "99999999999999999999", "%0a", "%27%22", &long]
            {
                let others = if name == "path" { "" } else { "&path=a" };
                let answer = operation
                    .send(lab, &format!("{}?{name}={bad}{others}", operation.path), body.clone(), bad)
                    .await;
                let place = format!("{} with {name}={bad}", operation.place());
                if bad.contains('%') && bad != "%0a" && bad != "%27%22" || typed {
                    refused(lab, &answer, &[400], name, &place);
                }
            }
            let twice = format!("{}?{name}=1&{name}=2", operation.path);
            let answer = operation.send(lab, &twice, body, "it twice").await;
            refused(lab, &answer, &[400], name, &format!("{} with {name} twice", operation.place()));
        }
        let missing =
            parameters.iter().find(|parameter| parameter["in"] == "query" && parameter["required"] == true);
        if let Some(missing) = missing {
            let answer = operation.send(lab, &operation.path, "", "nothing").await;
            refused(lab, &answer, &[400], missing["name"].as_str().unwrap(), &operation.place());
        }
    }
}

#[test]
fn damaged_fields_are_refused() {
    on_both(|store| async move {
        let lab = Lab::new(World::on(store).await);
        damage_fields(&lab).await;
        lab.finish(2000)
    });
}

async fn damage_fields(lab: &Lab) {
    let (all, ids) = all(&lab.world).await;
    for operation in &all {
        let Some(body) = &operation.body else { continue };
        let answer = operation.with_body(lab, body, "its good body").await;
        lab.expect(answer.status < 400, || {
            format!("{} refuses its good body: {}", operation.place(), answer.text())
        });
        let schema = DOCUMENT.body_schema(operation.method.as_str(), &operation.template).unwrap();
        let mut damaged = Vec::new();
        damage_object(schema, &ids, &mut damaged);
        for damage in damaged {
            let mut broken = body.clone();
            broken.as_object_mut().unwrap().extend(damage.fields.clone());
            if let Some(without) = &damage.without {
                broken.as_object_mut().unwrap().remove(without);
            }
            let answer = operation.with_body(lab, &broken, &damage.what).await;
            let unread = UNREAD.contains(&(operation.template.as_str(), damage.named.as_str()));
            if damage.must_refuse && !(unread && damage.what.ends_with("far too long")) {
                let place = format!("{} with {}", operation.place(), damage.what);
                refused(lab, &answer, &[400, 403, 404, 409, 413, 422], &damage.named, &place);
            }
        }
    }
}

/// What a good body is changed by.
#[derive(Clone)]
struct Damage {
    fields: Map<String, Value>,
    without: Option<String>,
    what: String,
    /// What the refusal must mention.
    named: String,
    must_refuse: bool,
}

fn damage_object(schema: &Value, ids: &BTreeMap<&'static str, String>, out: &mut Vec<Damage>) {
    let required: Vec<&str> =
        schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let empty = Map::new();
    let change = |name: &str, value: Value, what: String, must_refuse: bool| Damage {
        fields: Map::from_iter([(name.to_owned(), value)]),
        without: None,
        what: format!("{name} {what}"),
        named: name.to_owned(),
        must_refuse,
    };
    for (name, field) in schema["properties"].as_object().unwrap_or(&empty) {
        if required.contains(&name.as_str()) {
            let what = format!("no {name}");
            let without = Some(name.clone());
            out.push(Damage { fields: Map::new(), without, what, named: name.clone(), must_refuse: true });
        }
        for value in samples() {
            let shown: String = value.to_string().chars().take(30).collect();
            out.push(change(name, value.clone(), shown, !DOCUMENT.allows(field, &value)));
        }
        if DOCUMENT.allows(field, &json!("")) {
            let must_refuse = !UNLIMITED.contains(&name.as_str());
            out.push(change(name, json!("x".repeat(LONG)), "far too long".into(), must_refuse));
            let must_refuse = name != "stdin";
            out.push(change(name, json!("a\u{0}b"), "with a zero byte".into(), must_refuse));
        }
        let inner = DOCUMENT.inner(field);
        if inner.get("items").is_some() {
            let items = DOCUMENT.resolve(&inner["items"]);
            for value in samples().into_iter().filter(|value| !DOCUMENT.allows(items, value)) {
                out.push(change(name, json!([value]), format!("of {value}"), true));
            }
            if DOCUMENT.allows(items, &json!("")) {
                out.push(change(name, json!(["a\u{0}b"]), "of a zero byte".into(), true));
                out.push(change(
                    name,
                    json!(["x".repeat(LONG)]),
                    "of one far too long".into(),
                    name != "command",
                ));
                out.push(change(name, json!(vec!["x"; 20_000]), "of far too many".into(), false));
            }
            nested(name, items, ids, out, |value| json!([value]));
        }
        if let Some(values) = inner.get("additionalProperties").filter(|values| values.is_object()) {
            for value in samples().into_iter().filter(|value| !DOCUMENT.allows(values, value)) {
                out.push(change(name, json!({ "A": value }), format!("of {value}"), true));
            }
            out.push(change(name, json!({ "A": "a\u{0}b" }), "of a zero byte".into(), true));
        }
        if inner["type"] == "object"
            || inner["type"].as_array().is_some_and(|kinds| kinds.contains(&json!("object")))
        {
            out.push(change(name, json!({ "a\u{0}b": "x" }), "with a zero byte in a key".into(), true));
            out.push(change(name, json!({ "x".repeat(LONG): "x" }), "with a key far too long".into(), true));
        }
        nested(name, inner, ids, out, |value| value);
    }
    if schema["additionalProperties"] == false {
        let unknown = "no_such_field";
        out.push(change(unknown, json!(1), "which is unknown".into(), true));
    }
}

/// The same damage one level down, within a good value.
fn nested(
    name: &str,
    schema: &Value,
    ids: &BTreeMap<&'static str, String>,
    out: &mut Vec<Damage>,
    wrap: impl Fn(Value) -> Value,
) {
    if schema.get("properties").is_none() {
        return;
    }
    let required = schema["required"].as_array().cloned().unwrap_or_default();
    let whole: Map<String, Value> =
        required.iter().filter_map(Value::as_str).map(|field| (field.to_owned(), good(field, ids))).collect();
    let mut below = Vec::new();
    damage_object(schema, ids, &mut below);
    // A list of files says of each what became of it: a bad one among them is no refusal of the request.
    let lenient = name == "files";
    for damage in below {
        let mut broken = whole.clone();
        broken.extend(damage.fields);
        if let Some(without) = &damage.without {
            broken.remove(without);
        }
        let is_shape = damage.without.is_some();
        out.push(Damage {
            fields: Map::from_iter([(name.to_owned(), wrap(Value::Object(broken)))]),
            without: None,
            what: format!("{name}: {}", damage.what),
            named: damage.named,
            must_refuse: damage.must_refuse && (!lenient || is_shape),
        });
    }
}

/// One of every kind, and the ends of the numbers.
fn samples() -> Vec<Value> {
    vec![
        Value::Null,
        json!(true),
        json!(-1),
        json!(0),
        json!(1.5),
        json!(u32::MAX),
        json!(i64::MAX),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(1e300),
        json!(""),
        json!("no such word"),
        json!("\u{202e}\u{1f986}"),
        json!([]),
        json!([[]]),
        json!({}),
    ]
}

/// JSON by its grammar; only a reader of the value itself finds fault with it.
fn lenient(bytes: &[u8]) -> bool {
    [br#"{"a": "\ud800"}"#.as_slice(), b"{\"a\": 1e999}"].contains(&bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_cannot_be_read_are_refused() {
    let whole = Lab::new(World::start().await);
    let lab = &whole;
    let (all, _) = all(&lab.world).await;
    let deep = format!("{{\"a\":{}", "[".repeat(100_000));
    let cases: &[(&[u8], &str, u16, &str)] = &[
        (b"", "application/json", 400, "bad_request"),
        (b"{", "application/json", 400, "bad_request"),
        (b"{\"a\": \"\xff\"}", "application/json", 400, "bad_request"),
        (b"{\"a\": \"\\ud800\"}", "application/json", 400, "bad_request"),
        (b"\xef\xbb\xbf{}", "application/json", 400, "bad_request"),
        (b"\0", "application/json", 400, "bad_request"),
        (b"{\"a\": 1e999}", "application/json", 400, "bad_request"),
        (deep.as_bytes(), "application/json", 400, "bad_request"),
        (b"[1]", "application/json", 422, "VALIDATION_FAILED"),
        (b"7", "application/json", 422, "VALIDATION_FAILED"),
        (b"null", "application/json", 422, "VALIDATION_FAILED"),
        (b"{}", "text/plain", 415, "unsupported_media_type"),
        (b"{}", "", 415, "unsupported_media_type"),
        (b"a=1", "application/x-www-form-urlencoded", 415, "unsupported_media_type"),
    ];
    for operation in all.iter().filter(|operation| operation.body.is_some()) {
        for (bytes, kind, status, code) in cases {
            let mut request = Request::builder().method(operation.method.clone());
            request = request.uri(format!("{BASE}{}", operation.path));
            request = request.header("authorization", format!("Bearer {}", lab.world.key));
            if !kind.is_empty() {
                request = request.header("content-type", *kind);
            }
            let what: String = String::from_utf8_lossy(bytes).chars().take(20).collect();
            let request = request.body(Body::from(bytes.to_vec())).unwrap();
            let answer = operation.send_request(lab, request, &what).await;
            let place = format!("{} with {what:?} as {kind}: {}", operation.place(), answer.text());
            let optional = DOCUMENT.operation(operation.method.as_str(), &operation.template)["requestBody"]
                ["required"]
                != true;
            if bytes.is_empty() && optional {
                lab.expect(answer.status < 400, || place.clone());
            } else if lenient(bytes) && answer.status < 400 {
                // A field that the request does not have may be passed over unread.
            } else {
                lab.expect((answer.status, answer.code().as_str()) == (*status, *code), || place.clone());
            }
        }
    }
    whole.finish(400);
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_are_too_large_are_refused() {
    let whole = Lab::new(World::start().await);
    let lab = &whole;
    let (all, _) = all(&lab.world).await;
    let megabyte = Bytes::from(vec![b' '; 1 << 20]);
    let mut files = 0;
    for operation in all.iter().filter(|operation| operation.body.is_some()) {
        let takes_files = ["/fs/write", "/fs/write-many", "/files", "/files/write-many"]
            .iter()
            .any(|end| operation.template.ends_with(end));
        files += usize::from(takes_files);
        let count = if takes_files { 91 } else { 2 };
        let chunks = vec![Ok::<_, std::convert::Infallible>(megabyte.clone()); count];
        let body = Body::from_stream(tokio_stream::iter(chunks));
        let answer = operation.send(lab, &operation.path, body, "a large body").await;
        let place = format!("{}: {}", operation.place(), answer.text());
        lab.expect((answer.status, answer.code().as_str()) == (413, "TOO_LARGE"), || place.clone());
    }
    assert_eq!(files, 4);
    whole.finish(30);
}
