//! What goes wrong, and where: the n-th step of a kind meets one fault, once.
//!
//! Owns the count of steps and the life of the scheduler under test. A scheduler that died answers nobody, begins no
//! transaction and hears no host.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use roost_daemon::clock::Clock;
use roost_scheduler::store::fate::{Fate, Fates};
use tonic::Status;

/// What happens to one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It fails before it did anything.
    Fail,
    /// It happens, and whoever asked hears of a failure.
    Lose,
    /// The scheduler dies before it.
    Die,
    /// The scheduler dies after it, having heard nothing.
    Cut,
    /// It happens twice: a transaction lost against another and ran again, a call arrived twice.
    Twice,
}

/// Where a scheduler meets the world outside its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    Write,
    Ensure,
    Exec,
    Upload,
}

impl Step {
    pub fn faults(self) -> &'static [Fault] {
        use Fault::{Cut, Die, Fail, Lose, Twice};
        match self {
            Step::Write | Step::Ensure | Step::Upload => &[Fail, Lose, Die, Cut, Twice],
            // A stream that started is not started again by anything between the scheduler and the guest.
            Step::Exec => &[Fail, Lose, Die, Cut],
        }
    }
}

#[derive(Debug, Clone, Default)]
pub struct Plan(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    met: BTreeMap<Step, usize>,
    fault: Option<(Step, usize, Fault)>,
    struck: bool,
    alive: Option<Arc<AtomicBool>>,
}

impl Plan {
    /// Counts anew, with this fault ahead.
    pub fn begin(&self, fault: Option<(Step, usize, Fault)>) {
        let mut state = self.0.lock().unwrap();
        (state.met, state.fault, state.struck) = (BTreeMap::new(), fault, false);
    }

    /// Nothing goes wrong any more. The steps met since `begin`, and whether the fault was among them.
    pub fn end(&self) -> (BTreeMap<Step, usize>, bool) {
        let mut state = self.0.lock().unwrap();
        state.fault = None;
        (std::mem::take(&mut state.met), state.struck)
    }

    pub fn has_struck(&self) -> bool {
        self.0.lock().unwrap().struck
    }

    /// The scheduler that lives from now on.
    pub fn enter(&self) -> Process {
        let alive = Arc::new(AtomicBool::new(true));
        self.0.lock().unwrap().alive = Some(alive.clone());
        Process { plan: self.clone(), alive }
    }

    pub fn is_alive(&self) -> bool {
        self.0.lock().unwrap().alive.as_ref().is_none_or(|alive| alive.load(Ordering::SeqCst))
    }

    /// Ends the present scheduler: what it still has in the background writes nothing.
    pub fn die(&self) {
        if let Some(alive) = &self.0.lock().unwrap().alive {
            alive.store(false, Ordering::SeqCst);
        }
    }

    fn meet(&self, step: Step) -> Option<Fault> {
        let mut state = self.0.lock().unwrap();
        let number = state.met.entry(step).or_default();
        let here = *number;
        *number += 1;
        let (_, _, fault) = state.fault.filter(|(kind, at, _)| (*kind, *at) == (step, here))?;
        (state.fault, state.struck) = (None, true);
        if matches!(fault, Fault::Die | Fault::Cut)
            && let Some(alive) = &state.alive
        {
            alive.store(false, Ordering::SeqCst);
        }
        Some(fault)
    }

    /// Carries out what a host is asked, under the fault that is planned for it.
    pub fn around<T>(&self, step: Step, effect: impl Fn() -> T) -> Result<T, Status> {
        let broken = || Status::unavailable("planned fault");
        match self.meet(step) {
            None => Ok(effect()),
            Some(Fault::Fail | Fault::Die) => Err(broken()),
            Some(Fault::Lose | Fault::Cut) => {
                effect();
                Err(broken())
            }
            Some(Fault::Twice) => {
                effect();
                Ok(effect())
            }
        }
    }
}

/// One life of the scheduler, as its store sees it.
#[derive(Debug)]
pub struct Process {
    plan: Plan,
    alive: Arc<AtomicBool>,
}

impl Fates for Process {
    fn of_write(&self) -> Fate {
        if !self.alive.load(Ordering::SeqCst) {
            return Fate::Refused;
        }
        match self.plan.meet(Step::Write) {
            None => Fate::Heard,
            Some(Fault::Fail | Fault::Die) => Fate::Refused,
            Some(Fault::Lose | Fault::Cut) => Fate::Unheard,
            Some(Fault::Twice) => Fate::Rerun,
        }
    }

    fn of_read(&self) -> Fate {
        if self.alive.load(Ordering::SeqCst) { Fate::Heard } else { Fate::Refused }
    }
}

/// The machine's clock, ahead by what a test let pass.
#[derive(Debug, Clone, Default)]
pub struct Ahead(Arc<AtomicI64>);

impl Ahead {
    pub fn pass_us(&self, duration_us: i64) {
        self.0.fetch_add(duration_us, Ordering::SeqCst);
    }
}

impl Clock for Ahead {
    fn now_us(&self) -> i64 {
        roost_daemon::clock::now_us() + self.0.load(Ordering::SeqCst)
    }

    fn boottime_us(&self) -> i64 {
        roost_daemon::clock::boottime_us() + self.0.load(Ordering::SeqCst)
    }
}
