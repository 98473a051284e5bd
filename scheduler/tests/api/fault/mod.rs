//! Step faults of the scheduler: every write of every flow and every call to a host is failed, lost, cut and
//! repeated.
//!
//! Goal: whatever happens to whichever step, what the store says adds up, the host does what the store says, and the
//! client that calls again gets what it asked for, once. Method: the real router over a store whose transactions meet
//! fates (`store::fate`), and a host that follows the real ordering rules. A scheduler that dies is replaced by a
//! new one over the same store; the host says what it holds over the real `Sync`.

mod flow;
mod invariant;
pub mod plan;
mod rig;

use flow::Flow;
use rig::Rig;
use roost_scheduler::store::{Settings, Store};

use crate::engines::{on_postgres, runtime};

/// Every fault at every step of these flows.
async fn drive(flows: &[Flow], store: Store, directory: tempfile::TempDir) {
    let mut rig = Rig::new(store, directory).await;
    for flow in flows {
        break_everywhere(&mut rig, *flow).await;
    }
    rig.close();
}

async fn break_everywhere(rig: &mut Rig, flow: Flow) {
    let steps = rig.run(flow, None).await;
    assert!(!steps.is_empty(), "{flow:?} meets nothing");
    let mut cases = 0;
    for (step, count) in steps {
        for number in 0..count {
            for fault in step.faults() {
                rig.run(flow, Some((step, number, *fault))).await;
                cases += 1;
            }
        }
    }
    println!("{flow:?}: {cases} faults");
}

fn on_sqlite(flow: Flow) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(Settings::Sqlite { path: directory.path().join("scheduler.db") }).unwrap();
    runtime().block_on(drive(&[flow], store, directory));
}

macro_rules! flows {
    ($($name:ident => $flow:ident;)+) => {$(
        #[test]
        fn $name() {
            on_sqlite(Flow::$flow);
        }
    )+};
}

flows! {
    a_create_with_a_key_makes_one_sandbox => CreateKeyed;
    a_create_without_a_key_makes_what_it_says => CreateUnkeyed;
    a_command_runs_and_leaves_the_store_alone => Exec;
    an_upload_leaves_the_whole_file => Upload;
    a_pause_pauses_once => Pause;
    a_resume_resumes_once => Resume;
    a_stop_stops_once => Stop;
    a_new_secret_is_stored_once => SetSecret;
    a_secret_is_the_old_one_or_the_new_one => RotateSecret;
    a_token_that_was_answered_opens => Mint;
    a_revoked_token_never_opens_again => Revoke;
    what_is_destroyed_is_gone_everywhere => Destroy;
    a_lifetime_that_is_over_ends_the_sandbox_once => Timeout;
}

#[test]
fn the_flows_that_count_hold_on_postgres_too() {
    on_postgres(|store| async move {
        let flows = [Flow::CreateKeyed, Flow::Pause, Flow::RotateSecret, Flow::Destroy];
        drive(&flows, store, tempfile::tempdir().unwrap()).await;
    });
}
