//! What is wanted and what is: the agent's real store and the scheduler's real transactions, over a network that
//! loses, doubles and reorders their messages, with two hosts, restored backups on either side, and a move.
//!
//! Goal: both sides agree once messages flow, a call is never undone by an older report, at most one host serves, what
//! was destroyed stays destroyed. Must not know rules of its own about who wins.

#![allow(clippy::unwrap_used, unreachable_pub)]

mod message;
#[path = "../../../scheduler/tests/suite/rows.rs"]
#[allow(dead_code, reason = "the scheduler's own tests use the rest")]
mod rows;
mod world;

use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use roost_domain::desired::Run;
use tokio::runtime::Runtime;

use message::Event;
use world::{Side, World};

/// How long what goes on behind the last case, pushes to hosts that are not there, may take to end.
const ENDING: Duration = Duration::from_secs(5);

fn wanted() -> impl Strategy<Value = Run> {
    prop_oneof![
        6 => Just(Run::Running),
        6 => Just(Run::Paused),
        3 => Just(Run::Stopped),
        1 => Just(Run::Destroyed),
    ]
}

fn by_itself() -> impl Strategy<Value = Run> {
    prop_oneof![Just(Run::Running), Just(Run::Paused), Just(Run::Stopped)]
}

fn event() -> impl Strategy<Value = Event> {
    let host = || 0usize..2;
    prop_oneof![
        3 => wanted().prop_map(Event::Call),
        4 => (host(), by_itself()).prop_map(|(host, run)| Event::Local(host, run)),
        4 => host().prop_map(Event::Act),
        5 => host().prop_map(Event::Sync),
        5 => host().prop_map(Event::Exchange),
        5 => host().prop_map(Event::Upload),
        1 => Just(Event::Move),
        2 => Just(Event::BackUpScheduler),
        2 => Just(Event::RestoreScheduler),
        1 => host().prop_map(Event::BackUpHost),
        1 => host().prop_map(Event::RestoreHost),
        14 => any::<usize>().prop_map(Event::Deliver),
        3 => any::<usize>().prop_map(Event::Lose),
    ]
}

#[test]
fn both_sides_agree_whatever_the_network_and_backups_do() {
    let runtime = Runtime::new().unwrap();
    // One scheduler for all cases: each has a tenant and a sandbox of its own. PROPTEST_CASES makes them more than 256.
    let side = runtime.block_on(Side::start());
    let mut runner = TestRunner::new(ProptestConfig::default());
    let checked = runner.run(&vec(event(), 0..48), |events| {
        runtime.block_on(async {
            let mut world = World::new(&side).await;
            for event in &events {
                world.apply(*event).await;
                world.check_serving().await;
            }
            world.settle().await;
        });
        Ok(())
    });
    runtime.shutdown_timeout(ENDING);
    checked.unwrap();
}

/// The case that a restore makes worst: the host knows a later wish, and the next call has the number it knows.
#[test]
fn a_call_after_a_restore_is_followed() {
    let runtime = Runtime::new().unwrap();
    runtime.block_on(async {
        let side = Side::start().await;
        let mut world = World::new(&side).await;
        let events = [
            Event::Exchange(0),
            Event::BackUpScheduler,
            Event::Call(Run::Paused),
            Event::Exchange(0),
            Event::RestoreScheduler,
            Event::Call(Run::Stopped),
        ];
        for event in events {
            world.apply(event).await;
        }
        world.settle().await;
        assert_eq!(world.row().await.desired_run, "stopped");
    });
}
