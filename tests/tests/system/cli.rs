//! Every command with what it cannot do: bad arguments, bad settings, no daemon, nobody's rights. Boots nothing.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use roost_tests::program::{self, Outcome};
use roost_tests::stack::supervise::{Program, Supervised};
use roost_tests::{binary, poll, refusal};

const AGENT: &str = "roost-agent";
const SCHEDULER: &str = "roost-scheduler";
const DATAPLANE: &str = "roost-dataplane";

/// Each verb of the agent that speaks to the daemon, with arguments that would do.
const CLIENT: &[&[&str]] = &[
    &["run"],
    &["ps"],
    &["inspect", "sbx_x"],
    &["exec", "sbx_x", "--", "true"],
    &["pause", "sbx_x"],
    &["resume", "sbx_x"],
    &["stop", "sbx_x"],
    &["destroy", "sbx_x"],
    &["usage"],
    &["console", "sbx_x"],
];

fn command(program: &str, arguments: &[&str]) -> Command {
    let mut command = program::command(binary(program).unwrap());
    command.args(arguments);
    command
}

#[track_caller]
fn refused(program: &str, arguments: &[&str], named: &[&str]) {
    let outcome = refusal::run(command(program, arguments)).unwrap();
    if let Err(error) = refusal::check(program, &outcome, named) {
        panic!("{program} {}: {error:#}", arguments.join(" "));
    }
}

/// A directory of the test's own; removed with it.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("roost-cli-{name}-{}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str, text: impl AsRef<[u8]>) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    /// What is in it, so that a command that failed can be seen to have left nothing.
    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.0).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The commands below `prefix`, as its own help lists them.
fn listed(program: &str, prefix: &[&str]) -> Vec<String> {
    let help = help(program, prefix);
    let section = help.split("Commands:\n").nth(1).unwrap_or_default();
    let lines = section.lines().take_while(|line| line.starts_with("  "));
    let names =
        lines.filter(|line| !line.starts_with("   ")).filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

/// An argument or option of a help text that nothing is said about but its default.
fn unexplained(help: &str) -> Option<&str> {
    let lines: Vec<&str> = help.lines().collect();
    let takes = |line: &str| {
        let word = line.trim_start();
        let optional =
            word.strip_prefix('[').is_some_and(|rest| rest.starts_with(|first: char| first.is_uppercase()));
        line.starts_with(' ') && (optional || word.starts_with('-') || word.starts_with('<'))
    };
    let mut named = (0..lines.len()).filter(|at| takes(lines[*at]));
    named
        .find(|at| {
            let beside = lines[*at].trim_start().split_once("  ").map_or("", |(_, said)| said.trim_start());
            let below = lines.get(at + 1).map_or("", |line| line.trim_start());
            let is_said =
                |said: &str| !said.is_empty() && !["[", "-", "<"].iter().any(|mark| said.starts_with(mark));
            !is_said(beside) && !is_said(below)
        })
        .map(|at| lines[at])
}

fn help(program: &str, prefix: &[&str]) -> String {
    let outcome = program::run(command(program, &[prefix, &["--help"]].concat()), b"").unwrap();
    assert_eq!((outcome.code, outcome.complaint().as_str()), (0, ""), "{program} {prefix:?} --help");
    outcome.text()
}

#[test]
fn every_command_says_what_it_is_for() {
    let mut seen = 0;
    for program in [AGENT, SCHEDULER, DATAPLANE] {
        let mut waiting: Vec<Vec<String>> = vec![vec![]];
        while let Some(prefix) = waiting.pop() {
            let words: Vec<&str> = prefix.iter().map(String::as_str).collect();
            let text = help(program, &words);
            let about = text.lines().next().unwrap_or_default();
            assert!(about.split_whitespace().count() >= 3, "{program} {words:?} says only {about:?}");
            assert!(text.contains(&format!("Usage: {program}")), "{program} {words:?}: {text}");
            if let Some(mute) = unexplained(&text) {
                panic!("{program} {words:?} does not say what {mute:?} is");
            }
            waiting.extend(
                listed(program, &words).into_iter().map(|name| [prefix.clone(), vec![name]].concat()),
            );
            seen += 1;
        }
    }
    assert!(seen >= 30, "only {seen} commands were listed");
}

#[test]
fn arguments_that_cannot_be_are_refused_by_name() {
    for (program, arguments, named) in [
        (AGENT, &["launch"] as &[&str], &["launch"] as &[&str]),
        (AGENT, &["run", "--memory-mib", "lots"], &["--memory-mib", "lots"]),
        (AGENT, &["run", "--vcpus", "-1"], &["-1"]),
        (AGENT, &["run", "--env", "novalue"], &["--env", "NAME=value"]),
        (AGENT, &["run", "--env", "=x"], &["--env", "NAME=value"]),
        (AGENT, &["run", "--memory"], &["--memory"]),
        (AGENT, &["ps", "extra"], &["extra"]),
        (AGENT, &["inspect"], &["<ID>"]),
        (AGENT, &["exec", "sbx_x"], &["<COMMAND>"]),
        (AGENT, &["exec", "--timeout-s", "soon", "sbx_x", "true"], &["--timeout-s"]),
        (AGENT, &["pause"], &["<ID>"]),
        (AGENT, &["resume"], &["<ID>"]),
        (AGENT, &["stop"], &["<ID>"]),
        (AGENT, &["destroy"], &["<ID>"]),
        (AGENT, &["console"], &["<ID>"]),
        (AGENT, &["usage", "a", "b"], &["b"]),
        (AGENT, &["doctor", "--jason"], &["--jason"]),
        (AGENT, &["serve", "--config"], &["--config"]),
        (SCHEDULER, &["run"], &["run"]),
        (SCHEDULER, &["serve", "now"], &["now"]),
        (SCHEDULER, &["admin", "tenant", "create"], &["<NAME>"]),
        (SCHEDULER, &["admin", "tenant", "make", "x"], &["make"]),
        (SCHEDULER, &["admin", "key", "create"], &["--tenant"]),
        (SCHEDULER, &["admin", "key", "create", "--tenant", "a", "--days", "many"], &["--days", "many"]),
        (SCHEDULER, &["admin", "key", "list"], &["--tenant"]),
        (SCHEDULER, &["admin", "key", "revoke", "--tenant", "a"], &["<KEY>"]),
        (SCHEDULER, &["admin", "host", "token", "--minutes", "-5"], &["-5"]),
        (SCHEDULER, &["admin", "host", "cordon"], &["<HOST>"]),
        (SCHEDULER, &["admin", "host", "uncordon"], &["<HOST>"]),
        (SCHEDULER, &["admin", "host", "remove"], &["<HOST>"]),
        (DATAPLANE, &["router"], &["router"]),
        (DATAPLANE, &["edge"], &["--config"]),
        (DATAPLANE, &["egress", "--conf", "x"], &["--conf"]),
    ] {
        refused(program, arguments, named);
    }
}

/// A command that reads settings, with `{}` where the file goes.
fn readers() -> Vec<(&'static str, Vec<&'static str>)> {
    let mut all: Vec<(&str, Vec<&str>)> =
        CLIENT.iter().map(|verb| (AGENT, [&["--config", "{}"], *verb].concat())).collect();
    all.push((AGENT, vec!["--config", "{}", "serve"]));
    all.push((AGENT, vec!["--config", "{}", "doctor"]));
    all.push((SCHEDULER, vec!["serve", "--config", "{}"]));
    all.push((SCHEDULER, vec!["admin", "--config", "{}", "tenant", "list"]));
    all.push((DATAPLANE, vec!["edge", "--config", "{}"]));
    all.push((DATAPLANE, vec!["egress", "--config", "{}"]));
    all
}

#[test]
fn settings_that_cannot_be_read_are_named_with_file_line_and_key() {
    let scratch = Scratch::new("settings");
    let unknown = scratch.file("unknown.toml", "\n[log]\nlevl = \"hunter2\"\n");
    let kind = scratch.file("kind.toml", "# note\nlog = \"hunter2\"\n");
    let broken = scratch.file("broken.toml", "[log]\nlevel = \"hunter2\n");
    let binary = scratch.file("binary.toml", b"\xff\xfe");
    let large = scratch.file("large.toml", vec![b'#'; 1024 * 1024 + 1]);
    let absent = scratch.path("absent.toml");
    let directory = scratch.path(".");
    let before = scratch.names();
    for (program, arguments) in readers() {
        for (file, named) in [
            (&unknown, &["unknown.toml:3", "log.levl", "unknown field"] as &[&str]),
            (&kind, &["kind.toml:2", "log", "invalid type"]),
            (&broken, &["broken.toml:2", "log.level"]),
            (&binary, &["binary.toml", "UTF-8"]),
            (&large, &["large.toml", "larger than"]),
            (&absent, &["absent.toml", "--config", "No such file"]),
            (&directory, &["--config", "directory"]),
        ] {
            let arguments: Vec<&str> =
                arguments.iter().map(|word| if *word == "{}" { file.as_str() } else { word }).collect();
            let outcome = refusal::run(command(program, &arguments)).unwrap();
            if let Err(error) = refusal::check(program, &outcome, named) {
                panic!("{program} {}: {error:#}", arguments.join(" "));
            }
            assert!(!outcome.complaint().contains("hunter2"), "a value is quoted: {}", outcome.complaint());
        }
    }
    assert_eq!(scratch.names(), before, "a refused command left something");
}

#[test]
fn settings_that_cannot_work_are_refused_before_anything_is_made() {
    let scratch = Scratch::new("refused");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let (state, run) = (scratch.path("state"), scratch.path("run"));
    let plane = |rest: &str| {
        format!("[process]\ndirectory = \"{state}/x\"\ncontrol_socket = \"{run}/x/control.sock\"\n{rest}")
    };
    for (program, verb, text, named) in [
        (SCHEDULER, "serve", "[store]\nengine = \"postgres\"\n".to_owned(), &["store.url"] as &[&str]),
        (SCHEDULER, "serve", "[store]\nengine = \"mysql\"\n".to_owned(), &["store.engine", "sqlite"]),
        (SCHEDULER, "serve", "[api]\nlisten = \"0.0.0.0:1\"\n".to_owned(), &["api.tls", "loopback"]),
        (SCHEDULER, "serve", "[api]\nlisten = \"here\"\n".to_owned(), &["api.listen", "address"]),
        (
            SCHEDULER,
            "serve",
            "[api]\ntls = \"files\"\n".to_owned(),
            &["api.certificate_file", "api.key_file"],
        ),
        (SCHEDULER, "serve", "revocation_bound_s = 1\n".to_owned(), &["revocation_bound_s", "10 to 600"]),
        (SCHEDULER, "serve", "[log]\nlevel = \"loud=very\"\n".to_owned(), &["log"]),
        (
            AGENT,
            "serve",
            "[scheduler]\naddress = \"127.0.0.1:1\"\n".to_owned(),
            &["scheduler", "missing field"],
        ),
        (AGENT, "serve", "health_port = 70000\n".to_owned(), &["health_port", "u16"]),
        (AGENT, "serve", "[vmm]\ndriver = 5\n".to_owned(), &["vmm.driver"]),
        (DATAPLANE, "edge", String::new(), &["process"]),
        (DATAPLANE, "edge", "[process]\ndirectory = \"/x\"\n".to_owned(), &["control_socket"]),
        (DATAPLANE, "edge", plane("[egress]\n"), &["[egress]", "edge"]),
        (DATAPLANE, "egress", plane("[gateway]\nlisten = \"127.0.0.1:1\"\n"), &["[gateway]", "egress"]),
        (DATAPLANE, "edge", plane("[preview]\nlisten = []\n"), &["[scheduler]"]),
        (DATAPLANE, "edge", plane("").replace(&run, "run"), &["process.control_socket", "absolute"]),
        (DATAPLANE, "edge", plane(&format!("[gateway]\nlisten = \"127.0.0.1:{port}\"\n")), &["in use"]),
    ] {
        let file = scratch.file("x.toml", &text);
        let outcome = match program {
            AGENT => refusal::run(command(program, &["--config", &file, verb])).unwrap(),
            _ => refusal::run(command(program, &[verb, "--config", &file])).unwrap(),
        };
        if let Err(error) = refusal::check(program, &outcome, named) {
            panic!("{program} {verb} with {text}: {error:#}");
        }
    }
}

#[test]
fn directories_that_cannot_be_made_are_named() {
    let scratch = Scratch::new("directories");
    let occupied = scratch.file("occupied", "");
    let below = format!("{occupied}/state");
    let scheduler = scratch.file("scheduler.toml", format!("state_dir = \"{below}\"\n"));
    refused(SCHEDULER, &["serve", "--config", &scheduler], &[&below]);
    let agent = scratch.file("agent.toml", format!("state_dir = \"{below}\"\nhealth_port = 1\n"));
    refused(AGENT, &["--config", &agent, "serve"], &[&below, "Not a directory"]);
    let plane = format!("[process]\ndirectory = \"{below}\"\ncontrol_socket = \"/run/x/y.sock\"\n");
    let plane = scratch.file("plane.toml", plane);
    for role in ["edge", "egress"] {
        refused(DATAPLANE, &[role, "--config", &plane], &[&below]);
    }
    let mut expected = ["agent.toml", "occupied", "plane.toml", "scheduler.toml"].to_vec();
    expected.sort_unstable();
    assert_eq!(scratch.names(), expected);
}

#[test]
fn without_a_daemon_and_without_rights_it_is_said_what_to_do() {
    let scratch = Scratch::new("nobody");
    let run = scratch.path("run");
    let agent = scratch
        .file("agent.toml", format!("run_dir = \"{run}\"\nstate_dir = \"{}\"\n", scratch.path("state")));
    for verb in CLIENT {
        refused(
            AGENT,
            &[&["--config", agent.as_str()], *verb].concat(),
            &[&run, "roost-agent serve", "root"],
        );
    }
    // It is of use before the daemon can start.
    let outcome = refusal::run(command(AGENT, &["--config", &agent, "doctor", "--json"])).unwrap();
    assert!(outcome.text().lines().count() > 3, "{}", outcome.text());
    let socket = scratch.path("admin.sock");
    refused(SCHEDULER, &["admin", "--socket", &socket, "host", "list"], &[&socket, "is it running"]);
    // Somebody who is not root, with all else as it is.
    let outcome = as_nobody(AGENT, &["--config", &agent, "serve"]);
    refusal::check(AGENT, &outcome, &["run it as root"]).unwrap();
    assert_eq!(scratch.names(), ["agent.toml"], "a refused command left something");
}

fn as_nobody(program: &str, arguments: &[&str]) -> Outcome {
    let mut command = program::command("unshare");
    command
        .args(["--user", "--map-user=1000", "--map-group=1000", "--"])
        .arg(binary(program).unwrap())
        .args(arguments);
    refusal::run(command).unwrap()
}

#[test]
fn the_operators_mistakes_are_explained_by_the_scheduler() {
    let scratch = Scratch::new("admin");
    let socket = scratch.path("run/admin.sock");
    let port = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let text = format!(
        "state_dir = \"{}\"\nadmin_socket = \"{socket}\"\nhealth_port = {}\n[api]\nlisten = \"127.0.0.1:{}\"\n[hosts]\nlisten = \"127.0.0.1:{}\"\n",
        scratch.path("state"),
        port(),
        port(),
        port()
    );
    let settings = scratch.file("scheduler.toml", text);
    let log = Path::new(&scratch.path("log")).to_owned();
    let arguments = vec!["serve".to_owned(), "--config".to_owned(), settings.clone()];
    let binary = binary(SCHEDULER).unwrap();
    let serving = Program { name: "scheduler", binary, others: vec![], wrapper: vec![], arguments, log };
    let mut serving = Supervised::start(serving).unwrap();
    let admin = |arguments: &[&str]| {
        refusal::run(command(SCHEDULER, &[&["admin", "--config", settings.as_str()], arguments].concat()))
            .unwrap()
    };
    poll::until("the scheduler to serve its operator", Duration::from_secs(60), || {
        Ok((admin(&["tenant", "list"]).code == 0).then_some(()))
    })
    .unwrap();
    assert_eq!(admin(&["tenant", "create", "Acme"]).code, 0);
    let long = "x".repeat(200);
    for (arguments, named) in [
        (&["tenant", "create", "Acme"] as &[&str], &["Acme", "exists"] as &[&str]),
        (&["tenant", "create", ""], &["1 to 128"]),
        (&["tenant", "create", &long], &["1 to 128"]),
        (&["tenant", "create", "a\nb"], &["control"]),
        (&["key", "create", "--tenant", "nobody"], &["nobody", "tenant list"]),
        (&["key", "create", "--tenant", "acme", "--scope", "all"], &["all", "sandboxes:write"]),
        (&["key", "create", "--tenant", "acme", "--workspace", "none"], &["none", "workspace"]),
        (&["key", "create", "--tenant", "acme", "--days", "0"], &["days"]),
        (&["key", "create", "--tenant", "acme", "--days", "4294967295"], &["days"]),
        (&["key", "create", "--tenant", "acme", "--name", ""], &["1 to 128"]),
        (&["key", "list", "--tenant", "nobody"], &["nobody", "tenant list"]),
        (&["key", "revoke", "--tenant", "acme", "key_x"], &["key_x", "key list"]),
        (&["host", "token", "--minutes", "0"], &["minutes"]),
        (&["host", "token", "--minutes", "4294967295"], &["minutes"]),
        (&["host", "cordon", "host_x"], &["host_x", "host list"]),
        (&["host", "uncordon", "host_x"], &["host_x", "host list"]),
        (&["host", "remove", "host_x"], &["host_x", "host list"]),
    ] {
        if let Err(error) = refusal::check(SCHEDULER, &admin(arguments), named) {
            panic!("roost-scheduler admin {}: {error:#}", arguments.join(" "));
        }
    }
    let keys = admin(&["key", "list", "--tenant", "acme"]);
    assert_eq!(keys.text().lines().count(), 1, "a refused command made a key: {}", keys.text());
    assert_eq!(admin(&["tenant", "list"]).text().lines().count(), 2);
    // A second one on the same place says that it is taken.
    refused(SCHEDULER, &["serve", "--config", &settings], &["in use"]);
    serving.stop().unwrap();
}
