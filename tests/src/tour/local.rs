//! Steps of the host's operator: a sandbox of his own, at the agent's command line.

use anyhow::{Context, ensure};

use super::print::{self, Steps};
use crate::stack::Stack;
use crate::stack::agent::AgentCli;

pub(super) fn run(stack: &Stack, steps: &mut Steps) -> anyhow::Result<()> {
    let agent = stack.agent()?;
    let id = steps.step("Boot a sandbox", || boot(&agent))?;
    steps.step("Run a command in it", || exec(&agent, &id))?;
    steps.step("Pass it input, get its exit code", || exec_input(&agent, &id))?;
    steps.step("See it in the list", || list(&agent, &id))?;
    steps.step("Destroy it", || destroy(&agent, &id))
}

type Step<T> = anyhow::Result<(T, String)>;

fn boot(agent: &AgentCli) -> Step<String> {
    print::command("roost-agent run --memory-mib 256");
    let id = agent.run()?;
    print::output(&id);
    let execution = agent.inspect(&id)?["execution"].clone();
    let pid = execution["vmm_pid"].as_i64().unwrap_or_default();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("the VMM is not running")?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.split_whitespace().next().unwrap_or_default().to_owned()
    };
    let (uid, capabilities) = (field("Uid:"), field("CapEff:"));
    ensure!(
        uid != "0" && capabilities.trim_start_matches('0').is_empty(),
        "the VMM has privileges: uid {uid}"
    );
    Ok((id, format!("a kernel of its own in process {pid}, which is user {uid} without any capability")))
}

fn exec(agent: &AgentCli, id: &str) -> Step<()> {
    let text = "uname -sr; id -un; nproc";
    print::command(&format!("roost-agent exec --shell {id} '{text}'"));
    let output = agent.shell_text(id, text)?;
    print::output(&output);
    ensure!(output.starts_with("Linux "), "the guest did not answer as a Linux: {output}");
    let own = nix::sys::utsname::uname()?;
    let own = own.release().to_string_lossy();
    ensure!(!output.contains(&*own), "the guest runs the host's kernel");
    Ok(((), format!("the guest's kernel, not the host's {own}")))
}

fn exec_input(agent: &AgentCli, id: &str) -> Step<()> {
    print::command(&format!(
        "seq 3 | roost-agent exec -i --shell {id} 'paste -sd+ | python3 -c \"print(eval(input()))\"; exit 7'"
    ));
    let text = "paste -sd+ | python3 -c \"print(eval(input()))\"; exit 7";
    let outcome = agent.call(&["exec", "-i", "--shell", id, text], b"1\n2\n3\n")?;
    print::output(&outcome.text());
    ensure!(outcome.text() == "6", "1+2+3 came back as {:?} {}", outcome.text(), outcome.complaint());
    ensure!(outcome.code == 7, "exit code 7 came back as {}", outcome.code);
    Ok(((), "input went in, output and exit code 7 came back".to_owned()))
}

fn list(agent: &AgentCli, id: &str) -> Step<()> {
    print::command("roost-agent ps");
    print::output(&agent.call(&["ps"], b"")?.success("roost-agent ps")?.text());
    let listed = agent.list()?;
    let states: Vec<_> =
        listed.iter().filter(|sandbox| sandbox["id"] == id).map(|sandbox| &sandbox["state"]).collect();
    ensure!(states == ["running"], "the sandbox is not listed as running: {listed:?}");
    Ok(((), "it is listed as running".to_owned()))
}

fn destroy(agent: &AgentCli, id: &str) -> Step<()> {
    let pid = agent.inspect(id)?["execution"]["vmm_pid"].as_i64().unwrap_or_default();
    print::command(&format!("roost-agent destroy {id}"));
    agent.destroy(id)?;
    ensure!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "its VMM {pid} is still there");
    ensure!(agent.shell(id, "true")?.code != 0, "a destroyed sandbox still runs commands");
    Ok(((), format!("process {pid} is gone and nothing answers any more")))
}
