//! A credential used by a sandbox is nowhere but with its server and in the memory of egress and scheduler.
//!
//! Every place is searched by the same scanner, and beside each search that must find nothing stands one that must
//! find: a scanner that is blind, or looks in the wrong place, fails as well.

use std::cell::RefCell;
use std::path::Path;
use std::process::{Child, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use roost_tests::stack::tenant::Tenant;
use roost_tests::stack::{Allowed, Stack, Wish};
use roost_tests::upstream::{self, Upstream};
use roost_tests::{program, scan};
use serde_json::{Value, json};

const VALUE: &str = "s3cr3t-of-acme-5d1c0b7f";
const USER: &str = "user-of-acme-71c0de";

#[test]
fn vm_a20_a_secret_is_in_no_guest_no_file_no_answer_and_no_other_process() {
    let upstream = Upstream::start().unwrap();
    let allowed = Some(Allowed::from(&upstream));
    // Everything that libraries would say is said as well.
    let wish = Wish { upstream: allowed, log_level: Some("trace"), ..Wish::default() };
    let mut stack = Stack::for_test_with("secret", &wish).unwrap();
    let capture = Capture::of_sockets(pid(&stack, "agent"), &stack.place().root);
    let backend = Backend { tenant: stack.tenant().clone(), heard: RefCell::default() };

    let body = json!({ "external_user_id": USER, "cpu_count": 1, "memory_mb": 256, "disk_size_mb": 1024 });
    let sandbox = backend.post("/sandboxes?wait=60", &body);
    let id = sandbox["id"].as_str().unwrap();
    let secret = json!({
        "name": "KEY", "value": VALUE, "scope": "external_user", "external_user_id": USER,
        "expose_as_env": "KEY", "allowed_hosts": [upstream::NAME],
    });
    let secret = backend.post("/egress/secrets", &secret);
    let placeholder = use_it(&backend, id, &upstream);

    search_memory(&stack, id, &placeholder);
    backend.ask_everything(id, secret["id"].as_str().unwrap());
    search_answers(&backend, &placeholder);
    search_files(&stack, &placeholder);
    let journal = stack.place().run_dir.join("egress-state/audit");
    assert!(
        !scan::files_with(&journal, upstream::NAME).unwrap().is_empty(),
        "control: the call is in the journal"
    );

    // Asleep, the guest's memory is a file.
    backend.post(&format!("/sandboxes/{id}/pause"), &json!({}));
    backend.until(id, "paused");
    let snapshots = stack.place().root.join("agent/snapshots");
    assert!(
        !scan::files_with(&snapshots, &placeholder).unwrap().is_empty(),
        "control: it is in the snapshot"
    );
    assert_eq!(scan::files_with(&snapshots, VALUE).unwrap(), Vec::<String>::new());
    backend.post(&format!("/sandboxes/{id}/resume"), &json!({}));
    backend.until(id, "running");
    use_it(&backend, id, &upstream);
    search_memory(&stack, id, &placeholder);

    let execution =
        stack.agent().unwrap().inspect(id).unwrap()["execution"]["id"].as_str().unwrap().to_owned();
    let captured = capture.end();
    assert!(
        scan::is_in(&captured, &execution).unwrap(),
        "control: the agent's sockets carry the execution's id"
    );
    assert!(!scan::is_in(&captured, VALUE).unwrap(), "the value went through a socket of the agent");

    crash_the_keepers(&mut stack);
    search_files(&stack, &placeholder);
    search_answers(&backend, &placeholder);
    stack.finish().unwrap();
}

/// Swapped on the way out; kept on the guest's disk and in its memory as what the guest has of it.
fn use_it(backend: &Backend, id: &str, upstream: &Upstream) -> String {
    let text = format!(
        "curl -sS -H \"Authorization: Bearer $KEY\" {} && printenv KEY > /workspace/key && sync && (sleep 600 &)",
        upstream.url("/swap")
    );
    assert_eq!(backend.shell(id, &text), upstream::ANSWER);
    let seen = upstream.seen();
    let arrived = seen.last().and_then(|seen| seen.header("authorization"));
    assert_eq!(arrived, Some(format!("Bearer {VALUE}").as_str()), "control: its server got it");
    backend.shell(id, "printenv KEY")
}

fn search_memory(stack: &Stack, id: &str, placeholder: &str) {
    let vmm = stack.agent().unwrap().inspect(id).unwrap()["execution"]["vmm_pid"].as_i64().unwrap();
    assert!(scan::is_in_memory(vmm, placeholder).unwrap(), "control: the guest knows its placeholder");
    assert!(!scan::is_in_memory(vmm, VALUE).unwrap(), "the value is in the guest's memory or the VMM's");
    for process in ["agent", "edge"] {
        let pid = pid(stack, process).as_raw().into();
        assert!(scan::is_in_memory(pid, id).unwrap(), "control: {process} knows the sandbox");
        assert!(!scan::is_in_memory(pid, VALUE).unwrap(), "the value is in the memory of {process}");
    }
}

/// Disks, databases, journals, logs, snapshots, settings, sockets' directories, and the image.
fn search_files(stack: &Stack, placeholder: &str) {
    let place = stack.place();
    let planted = place.root.join("planted");
    std::fs::write(&planted, VALUE).unwrap();
    let found = scan::files_with(&place.root, VALUE).unwrap();
    assert_eq!(found, [planted.to_string_lossy()], "besides the planted file");
    std::fs::remove_file(&planted).unwrap();
    assert_eq!(scan::files_with(&place.run_dir, VALUE).unwrap(), Vec::<String>::new());
    assert_eq!(scan::files_with(&place.image_dir, VALUE).unwrap(), Vec::<String>::new());
    for (what, directory, text) in [
        ("the sandbox's disk", place.root.join("agent/disks"), placeholder),
        ("the scheduler's databases", place.root.join("scheduler"), USER),
        ("the logs", place.root.join("logs"), "TRACE"),
        ("the run directory", place.run_dir.clone(), upstream::NAME),
        ("the image", place.image_dir.clone(), "roost-init"),
    ] {
        assert!(!scan::files_with(&directory, text).unwrap().is_empty(), "control: {text} is in {what}");
    }
}

fn search_answers(backend: &Backend, placeholder: &str) {
    let heard = backend.heard.borrow();
    assert!(scan::is_in(&heard, placeholder).unwrap(), "control: the API told the placeholder");
    assert!(!scan::is_in(&heard, VALUE).unwrap(), "the API told the value");
}

/// The two processes that know the value die in the way that writes a core file elsewhere.
fn crash_the_keepers(stack: &mut Stack) {
    for text in ["lost the scheduler's", "the scheduler cannot be told", "data plane disconnected"] {
        stack.expect_log(text);
    }
    for process in ["egress", "scheduler"] {
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", pid(stack, process))).unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        let amounts: Vec<&str> = core.split_whitespace().skip(4).collect();
        assert_eq!(amounts, ["0", "0", "bytes"], "{process} may write core files");
        stack.crash_and_await(process).unwrap();
    }
    let cores = std::fs::read_dir(".").unwrap().flatten().filter(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        name == "core" || name.starts_with("core.")
    });
    assert_eq!(cores.count(), 0, "a core file");
}

fn pid(stack: &Stack, process: &str) -> Pid {
    stack.process(process).unwrap().pid().unwrap()
}

/// A tenant's backend that remembers every byte the API told it.
struct Backend {
    tenant: Tenant,
    heard: RefCell<Vec<u8>>,
}

impl Backend {
    fn call(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        let answer = self.tenant.call(method, path, body).expect(path);
        self.heard.borrow_mut().extend_from_slice(&answer.bytes);
        (answer.status, answer.body)
    }

    fn post(&self, path: &str, body: &Value) -> Value {
        let (status, answer) = self.call("POST", path, Some(body));
        assert!((200..300).contains(&status), "{path}: {status} {answer}");
        answer.get("data").unwrap_or(&answer).clone()
    }

    fn shell(&self, id: &str, text: &str) -> String {
        let result = self.post(&format!("/sandboxes/{id}/exec"), &json!({ "command": text }));
        assert_eq!(result["exit_code"], 0, "{text}: {result}");
        result["stdout"].as_str().expect("stdout").trim_end().to_owned()
    }

    fn until(&self, id: &str, state: &str) {
        let what = format!("the sandbox to be {state}");
        roost_tests::poll::until(&what, std::time::Duration::from_secs(60), || {
            let (_, answer) = self.call("GET", &format!("/sandboxes/{id}"), None);
            Ok((answer["data"]["state"] == state).then_some(()))
        })
        .unwrap();
    }

    /// Every question of the API's document that ends by itself.
    fn ask_everything(&self, sandbox: &str, secret: &str) {
        let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/api/openapi.json");
        let document: Value = serde_json::from_slice(&std::fs::read(document).unwrap()).unwrap();
        let mut answered = 0;
        for (path, operations) in document["paths"].as_object().unwrap() {
            let endless = path.ends_with("/stream") || path.ends_with("/events") || path.ends_with("/watch");
            if operations.get("get").is_none() || endless {
                continue;
            }
            let path = path.trim_start_matches("/api/v1");
            let id = if path.starts_with("/egress/secrets") { secret } else { sandbox };
            let path = path
                .replace("{id}", id)
                .replace("{external_user_id}", USER)
                .replace("{path}", "workspace/key")
                .replace("{pid}", "1");
            let query =
                if path.contains("/files") || path.contains("/fs/") { "?path=/workspace/key" } else { "" };
            let (status, _) = self.call("GET", &format!("{path}{query}"), None);
            assert!(status < 500, "{path}: {status}");
            answered += usize::from(status == 200);
        }
        assert!(answered >= 20, "only {answered} questions were answered");
    }
}

/// What a process and its threads write into and read from sockets, as strace sees it.
struct Capture {
    tracer: Child,
    file: std::path::PathBuf,
}

impl Capture {
    fn of_sockets(process: Pid, directory: &Path) -> Self {
        let file = directory.with_extension("strace");
        let mut command = program::command("strace");
        command.args(["-q", "-f", "-xx", "-s", "1048576", "-e", "trace=%network,readv,writev"]);
        command.args(["-p", &process.to_string(), "-o"]).arg(&file);
        let tracer = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn();
        let tracer = tracer.expect("strace is missing: apt-get install strace");
        let status = format!("/proc/{process}/status");
        roost_tests::poll::until("the tracer", std::time::Duration::from_secs(10), || {
            let is_traced = !std::fs::read_to_string(&status)?.contains("TracerPid:\t0");
            Ok(is_traced.then_some(()))
        })
        .unwrap();
        Self { tracer, file }
    }

    /// Every byte, system calls' names and all.
    fn end(mut self) -> Vec<u8> {
        kill(Pid::from_raw(self.tracer.id().cast_signed()), Signal::SIGINT).unwrap();
        self.tracer.wait().unwrap();
        let text = std::fs::read_to_string(&self.file).unwrap();
        std::fs::remove_file(&self.file).unwrap();
        let mut bytes = Vec::new();
        for part in text.split("\\x").skip(1) {
            bytes.push(u8::from_str_radix(&part[..2], 16).unwrap());
            // What follows is not part of a string any more.
            bytes.extend(part[2..].bytes().take(1));
        }
        bytes
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.tracer.kill();
        let _ = self.tracer.wait();
    }
}
