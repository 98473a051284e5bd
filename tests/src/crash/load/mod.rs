//! The load of a trial: threads that do what tenants do, over and over, and note what was acknowledged.
//!
//! None of them fails: what is not answered was not acknowledged. What must never be seen is a violation.

mod passing;
mod steady;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::json;

pub(super) use passing::sandbox_body;
pub(super) use steady::{LOG, content};

use super::scene::{ENV, Scene, USER, Vm};
use crate::upstream;

/// A VM takes a boot to be back.
const UP_DEADLINE: Duration = Duration::from_secs(180);

/// The threads; [`Load::stop`] ends them.
#[derive(Debug)]
pub(super) struct Load {
    scene: Arc<Scene>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// The last VM is the one that is paused and resumed.
    pub(super) fn start(scene: &Arc<Scene>) -> anyhow::Result<Self> {
        let mut load = Self { scene: Arc::clone(scene), threads: Vec::new() };
        let last = scene.vms.len() - 1;
        for index in 0..last {
            load.spawn("steady", move |scene| steady::work(scene, index))?;
            load.spawn("caller", move |scene| steady::call(scene, index))?;
        }
        load.spawn("sleeper", move |scene| steady::pause_and_resume(scene, &scene.vms[last]))?;
        load.spawn("mayfly", passing::create_and_destroy)?;
        load.spawn("viewer", passing::share_and_view)?;
        load.spawn("rotator", rotate)?;
        Ok(load)
    }

    fn spawn(&mut self, name: &str, work: impl Fn(&Scene) + Send + 'static) -> anyhow::Result<()> {
        let scene = Arc::clone(&self.scene);
        let thread = std::thread::Builder::new().name(name.to_owned());
        self.threads.push(thread.spawn(move || work(&scene))?);
        Ok(())
    }

    /// Ends the load and waits for what is under way.
    pub(super) fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.scene.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                self.scene.violation("a thread of the load panicked");
            }
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.end();
    }
}

/// Gives the secret a new value.
pub(super) fn set_secret(scene: &Scene, number: usize) -> bool {
    let value = format!("crash-value-{number}-4be1");
    {
        let mut ledger = scene.ledger();
        ledger.values.push(value.clone());
        ledger.secrets.asked += 1;
    }
    let body = json!({
        "name": ENV, "value": value, "scope": "external_user", "external_user_id": USER,
        "expose_as_env": ENV, "allowed_hosts": [upstream::NAME],
    });
    let is_set = scene.ask("POST", "/egress/secrets", Some(&body)).is_some();
    scene.ledger().secrets.acknowledged += usize::from(is_set);
    is_set
}

fn rotate(scene: &Scene) {
    let mut number = 1;
    while !scene.is_over() {
        set_secret(scene, number);
        number += 1;
        rest(scene, 1500);
    }
}

/// Makes a VM run that does not, and takes it up.
pub(super) fn bring_up(scene: &Scene, vm: &Vm) -> bool {
    let begun = Instant::now();
    let path = format!("/sandboxes/{}/resume", vm.id);
    while begun.elapsed() < UP_DEADLINE {
        let state = scene.state(&vm.id);
        match state.as_deref() {
            Some("running") => {
                if let Some(sandbox) = scene.ledger().sandboxes.get_mut(&vm.id) {
                    sandbox.clock.asked(Instant::now());
                }
                if scene.take_up(vm).is_some() {
                    return true;
                }
            }
            Some("stopped" | "paused" | "error") => {
                if let Some(sandbox) = scene.ledger().sandboxes.get_mut(&vm.id) {
                    sandbox.clock.asked(Instant::now());
                }
                scene.call("POST", &path, Some(&json!({})));
            }
            _ => {}
        }
        std::thread::sleep(Duration::from_millis(300));
    }
    scene.violation(format!("{} did not come up again within {} s", vm.id, UP_DEADLINE.as_secs()));
    false
}

/// Waits until the end of a killed VMM was noticed; a call for the sandbox may have started it again since.
pub(super) fn await_end(scene: &Scene, vm: &Vm) {
    let begun = Instant::now();
    while begun.elapsed() < UP_DEADLINE {
        let is_down = matches!(scene.state(&vm.id).as_deref(), Some("stopped" | "error"));
        let is_back = !is_down && scene.has_successor(vm);
        if is_down || is_back {
            if let Some(sandbox) = scene.ledger().sandboxes.get_mut(&vm.id) {
                let now = Instant::now();
                sandbox.clock.over(now);
                if is_back {
                    sandbox.clock.asked(now);
                }
            }
            return;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    scene.violation(format!("the end of the VMM of {} was never noticed", vm.id));
}

/// A short rest, shorter still when the trial is over.
fn rest(scene: &Scene, millis: u64) {
    let begun = Instant::now();
    while !scene.is_over() && begun.elapsed() < Duration::from_millis(millis) {
        std::thread::sleep(Duration::from_millis(50));
    }
}
