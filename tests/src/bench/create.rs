//! Creation, resume and exec through the API, in turns with the bare VMM; and what the agent itself adds.
//!
//! The control (`tests/control`) runs the same QEMU with the arguments of a product VM, the same image, an equal disk
//! and an equal first call, in a slot that is ready before its clock starts. The product's clock starts with the
//! request: its slot, its commits and its two data-plane processes are in the figure. Teardown is over before the next
//! turn. Product VMs have a control group each and the control has none: on a machine with other work that alone
//! would tell, so the load average stands above the figures.

mod api;
mod control;
mod steps;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use serde_json::{Value, json};

use super::report::{Figure, Report, Samples};
use crate::poll;
use crate::program;
use crate::stack::Stack;
use api::Api;
use control::Control;
use steps::Steps;

/// The product's VM is emulated, on a machine that may be busy.
const DEADLINE: Duration = Duration::from_secs(100);
const GEOMETRY: [(&str, u64); 3] = [("cpu_count", 1), ("memory_mb", 256), ("disk_size_mb", 1024)];
const COMMANDS: [&str; 2] = ["true", "python3 -c 'print(1)'"];
/// Of each command, after one that is not counted.
const EXECS: usize = 5;

#[derive(Debug, Args)]
pub(super) struct Options {
    /// How often product and control take turns.
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// How many sandboxes the agent makes with a VMM that does nothing.
    #[arg(long, default_value_t = 30)]
    null: usize,
}

/// Milliseconds of one side.
#[derive(Debug, Default)]
pub(super) struct Times {
    ready: Samples,
    first_exec: Samples,
    execs: [Samples; 2],
    pause: Samples,
    resumed: Samples,
    resumed_exec: Samples,
}

pub(super) fn run(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let stack = Stack::for_test("bench-create")?;
    let control = learn(&stack)?;
    let log = stack.place().log("agent");
    let learnt = std::fs::metadata(&log)?.len() as usize;
    let [mut product, mut bare] = [Times::default(), Times::default()];
    for _ in 0..options.rounds {
        take_turn(&stack, &mut product)?;
        control.take_turn(&mut bare)?;
    }
    control.remove()?;
    let log = std::fs::read_to_string(log)?;
    stack.finish()?;
    add(report, &product, &bare);
    Steps::read(log.get(learnt..).unwrap_or_default()).add(report);
    add_agent(report, options.null)
}

/// One sandbox through the API: made, used, paused, resumed, destroyed.
fn take_turn(stack: &Stack, times: &mut Times) -> anyhow::Result<()> {
    let mut api = Api::connect(stack.tenant(), stack.ports().api)?;
    let begun = Instant::now();
    let id = create(&mut api)?;
    times.ready.push(ms(begun));
    exec(&mut api, &id, COMMANDS[0])?;
    times.first_exec.push(ms(begun));
    for (samples, command) in times.execs.iter_mut().zip(COMMANDS) {
        // The first run of a program has the emulator translate it, and the disk read.
        exec(&mut api, &id, command)?;
        for _ in 0..EXECS {
            let begun = Instant::now();
            exec(&mut api, &id, command)?;
            samples.push(ms(begun));
        }
    }
    let begun = Instant::now();
    api.post(&format!("/sandboxes/{id}/pause"), &json!({}))?;
    await_state(&mut api, &id, "paused")?;
    times.pause.push(ms(begun));
    let begun = Instant::now();
    api.post(&format!("/sandboxes/{id}/resume"), &json!({}))?;
    await_state(&mut api, &id, "running")?;
    times.resumed.push(ms(begun));
    exec(&mut api, &id, COMMANDS[0])?;
    times.resumed_exec.push(ms(begun));
    destroy(stack)
}

/// A first sandbox, which is not counted: fills caches, and shows how the product starts its VMM.
fn learn(stack: &Stack) -> anyhow::Result<Control> {
    let mut api = Api::connect(stack.tenant(), stack.ports().api)?;
    let id = create(&mut api)?;
    exec(&mut api, &id, COMMANDS[0])?;
    let pid = stack.agent()?.inspect(&id)?["execution"]["vmm_pid"].as_i64().context("it has no VMM")?;
    let control = Control::learn(stack, pid)?;
    destroy(stack)?;
    Ok(control)
}

fn create(api: &mut Api) -> anyhow::Result<String> {
    let body: Value = GEOMETRY.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
    let sandbox = api.post("/sandboxes?wait=90", &body)?;
    ensure!(sandbox["state"] == "running", "it is not running: {sandbox}");
    Ok(sandbox["id"].as_str().context("a sandbox without id")?.to_owned())
}

fn exec(api: &mut Api, id: &str, command: &str) -> anyhow::Result<()> {
    let result = api.post(&format!("/sandboxes/{id}/exec"), &json!({ "command": command }))?;
    ensure!(result["exit_code"] == 0, "{command}: {result}");
    Ok(())
}

/// Asks every other millisecond: what a caller who waits for nothing else would see.
fn await_state(api: &mut Api, id: &str, state: &str) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        let sandbox = api.get(&format!("/sandboxes/{id}"))?;
        if sandbox["state"] == state {
            return Ok(());
        }
        ensure!(begun.elapsed() < DEADLINE && sandbox["state"] != "error", "not {state}: {sandbox}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Until nothing of it runs on this host.
fn destroy(stack: &Stack) -> anyhow::Result<()> {
    stack.tenant().destroy_all()?;
    let agent = stack.agent()?;
    poll::until("the sandbox to leave the host", DEADLINE, || {
        let left = agent.list()?.into_iter().filter(|sandbox| sandbox["state"] != "destroyed").count();
        Ok((left == 0).then_some(()))
    })
}

fn add(report: &mut Report, product: &Times, bare: &Times) {
    let [true_ms, python_ms] = &product.execs;
    let cold = "ms, POST /sandboxes?wait to running; control: QEMU to answered claim";
    report.add(Figure::of("create.cold", cold, &product.ready, Some(&bare.ready)));
    let resume = "ms, POST …/resume to running; control: QEMU restored by recipe to answered call";
    report.add(Figure::of("resume", resume, &product.resumed, Some(&bare.resumed)));
    let to_cold = "ms, the same; control: QEMU's cold boot to answered claim";
    report.add(Figure::of("resume.to_cold", to_cold, &product.resumed, Some(&bare.ready)));
    for (id, what, samples) in [
        ("create.first_exec", "ms, POST /sandboxes?wait to the end of a first `true`", &product.first_exec),
        ("resume.first_exec", "ms, POST …/resume to the end of a first `true`", &product.resumed_exec),
        ("exec.true", "ms, exec of `true`", true_ms),
        ("exec.python", "ms, exec of python3 -c 'print(1)'", python_ms),
        ("pause", "ms, POST …/pause to paused", &product.pause),
    ] {
        report.add(Figure::of(id, what, samples, None));
    }
}

/// The agent with real store, namespace, rules, tap, cgroup and disk, but no VMM and no guest.
fn add_agent(report: &mut Report, rounds: usize) -> anyhow::Result<()> {
    let own = std::env::current_exe()?;
    let yardstick = own.with_file_name("examples").join("agent-yardstick");
    ensure!(yardstick.exists(), "{} is not built: cargo xtask bench create does", yardstick.display());
    let clone = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("this package is in no clone")?;
    let mut command = program::command(&yardstick);
    command.arg(clone.join(".roost/images")).arg(crate::image::TEMPLATE).arg(rounds.to_string());
    let said: Value = serde_json::from_str(&program::run(command, b"")?.success("agent-yardstick")?.text())?;
    let samples = |name: &str| control::samples(&said, name);
    let floor = "ms, agent with a VMM that does nothing, wish to running; control: the host operations alone";
    report.add(Figure::of("agent.wall", floor, &samples("wall_ms")?, Some(&samples("bare_wall_ms")?)));
    let cpu = "CPU-ms of the same, its tools included";
    report.add(Figure::of("agent.cpu", cpu, &samples("cpu_ms")?, Some(&samples("bare_cpu_ms")?)));
    Ok(())
}

fn ms(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1e3
}
