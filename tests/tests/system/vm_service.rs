//! The agent stopped as systemd stops a service: everything in its control group is killed.

use std::time::Duration;

use roost_tests::stack::{Stack, Wish};
use roost_tests::{poll, program};
use serde_json::json;

const DEADLINE: Duration = Duration::from_secs(120);
const LINES: usize = 60;

/// Sends its page a line at a time, as a slow download does.
const SERVER: &str = r#"
import http.server, time
class Slow(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        lines = [b"line %03d\n" % number for number in range(LINES)]
        self.send_response(200)
        self.send_header("content-length", str(sum(map(len, lines))))
        self.end_headers()
        open("/tmp/download-begun", "w").close()
        for line in lines:
            self.wfile.write(line)
            self.wfile.flush()
            time.sleep(0.2)
http.server.ThreadingHTTPServer(("127.0.0.1", 8000), Slow).serve_forever()
"#;

#[test]
fn vm_and_connections_outlive_the_stop_of_the_agent_s_service() {
    let mut stack = Stack::for_test_with("service", &Wish { agent_cgroup: true, ..Wish::default() }).unwrap();
    stack.expect_log("the agent went away");
    let tenant = stack.tenant().clone();
    let body = json!({ "cpu_count": 1, "memory_mb": 256, "disk_size_mb": 1024 });
    let made = tenant.call("POST", "/sandboxes?wait=100", Some(&body)).unwrap().data().unwrap();
    let id = made["id"].as_str().unwrap().to_owned();
    let agent = stack.agent().unwrap();
    let server = SERVER.replace("LINES", &LINES.to_string());
    let start =
        format!("cat > /tmp/slow.py <<'END'{server}END\n(setsid python3 /tmp/slow.py >/dev/null 2>&1 &)");
    agent.shell_text(&id, &start).unwrap();
    agent
        .shell_text(
            &id,
            "for i in $(seq 300); do grep -q :1F40 /proc/net/tcp && exit; sleep 0.1; done; exit 1",
        )
        .unwrap();
    let expose = json!({ "port": 8000 });
    let exposed =
        tenant.call("POST", &format!("/sandboxes/{id}/expose"), Some(&expose)).unwrap().data().unwrap();
    let url = exposed["url"].as_str().unwrap().to_owned();
    let before = agent.inspect(&id).unwrap()["execution"].clone();

    let mut download = program::command("curl");
    download.args(["-sS", "-L", "--max-time", "100", "--cacert"]);
    download.arg(stack.place().preview_root()).arg(&url);
    let download = std::thread::spawn(move || program::run(download, b"").unwrap());
    let (client, sandbox) = (tenant.clone(), id.clone());
    let command =
        format!("touch /tmp/stream-begun; for i in $(seq {LINES}); do echo line $i; sleep 0.2; done");
    let stream = std::thread::spawn(move || {
        let body = json!({ "command": command });
        client.call("POST", &format!("/sandboxes/{sandbox}/exec/stream"), Some(&body)).unwrap()
    });
    poll::until("both connections to be in use", DEADLINE, || {
        let seen = agent.shell(&id, "test -e /tmp/stream-begun && test -e /tmp/download-begun")?;
        Ok((seen.code == 0).then_some(()))
    })
    .unwrap();

    let process = stack.process("agent").unwrap();
    let (pid, starts) = (process.pid().unwrap(), process.starts());
    let killed = stack.agent_cgroup().unwrap().kill().unwrap();
    assert_eq!(killed, [pid.as_raw()], "only the agent itself lives in its group");
    poll::until("the agent to be started again", DEADLINE, || {
        Ok((stack.process("agent")?.starts() > starts).then_some(()))
    })
    .unwrap();
    stack.wait_ready().unwrap();
    assert!(!stream.is_finished() && !download.is_finished(), "they were over before they could be cut");

    let page = download.join().unwrap().success("the download").unwrap().text();
    assert_eq!(page.lines().count(), LINES, "{page}");
    let events = String::from_utf8(stream.join().unwrap().bytes).unwrap();
    let lines = events.lines().filter(|line| line.starts_with("data:") && line.contains("line ")).count();
    assert_eq!(lines, LINES, "{events}");
    assert!(events.contains("event: exit"), "{events}");
    assert_eq!(agent.inspect(&id).unwrap()["execution"]["vmm_pid"], before["vmm_pid"]);
    assert_eq!(agent.shell_text(&id, "echo here").unwrap(), "here");
    stack.finish().unwrap();
}
