//! The checker, on books that are in order and on books that are not.

use std::time::{Duration, Instant};

use super::super::books::{Agent, Execution, Sandbox, Scheduler};
use super::super::ledger::{self, Call, Clock, Tally};
use super::*;

const SECOND: i64 = 1_000_000;

fn delta(seq: i64, from_us: i64, to_us: i64) -> Delta {
    let mut amounts = [7; AMOUNTS.len()];
    amounts[WALL] = to_us - from_us;
    Delta { execution: "exe_1".into(), seq, sandbox: "sbx_1".into(), from_us, to_us, amounts }
}

fn event(path: &str, action: &str, status: Option<i64>) -> Event {
    Event {
        id: format!("evt{path}"),
        path: path.into(),
        time_us: 100 * SECOND,
        completed_us: Some(101 * SECOND),
        action: Some(action.into()),
        rejected_by: None,
        status,
    }
}

/// A sandbox that ran for 90 s, made two calls, and was destroyed.
fn in_order() -> (Ledger, Books) {
    let deltas = vec![delta(1, 0, 60 * SECOND), delta(2, 60 * SECOND, 90 * SECOND)];
    let execution = Execution {
        id: "exe_1".into(),
        started_us: Some(0),
        ended_us: Some(91 * SECOND),
        end_cause: Some("destroyed".into()),
    };
    let mut rolled = [14; AMOUNTS.len()];
    rolled[WALL] = 90 * SECOND;
    let aborted = Event { rejected_by: Some("aborted".into()), ..event("/2", "error", None) };
    let actions = [("sandbox.created", "sbx_1"), ("sandbox.destroyed", "sbx_1"), ("secret.created", "sec_1")];
    let books = Books {
        agent: Agent {
            deltas: deltas.clone(),
            executions: vec![execution],
            sandboxes: [("sbx_1".to_owned(), "destroyed".to_owned())].into(),
            outbox: 0,
        },
        scheduler: Scheduler {
            deltas,
            rollups: [("sbx_1".to_owned(), rolled)].into(),
            sandboxes: vec![Sandbox { id: "sbx_1".into(), name: "one".into(), state: "destroyed".into() }],
            events: vec![event("/1", "allow", Some(200)), aborted],
            actions: actions.map(|(action, resource)| (action.to_owned(), resource.to_owned())).to_vec(),
        },
    };
    let start = Instant::now();
    let mut clock = Clock::default();
    clock.asked(start);
    clock.running(start + Duration::from_secs(2));
    clock.ending(start + Duration::from_secs(91));
    clock.over(start + Duration::from_secs(93));
    let ledger = Ledger {
        calls: [
            ("/1".to_owned(), Call { seen: 1, status: Some(200) }),
            ("/2".to_owned(), Call { seen: 1, status: None }),
            ("/never-left".to_owned(), Call::default()),
        ]
        .into(),
        sandboxes: [(
            "sbx_1".to_owned(),
            ledger::Sandbox { clock, destroy_acknowledged: true, ..ledger::Sandbox::default() },
        )]
        .into(),
        creates: [("one".to_owned(), Some("sbx_1".to_owned()))].into(),
        secrets: Tally { asked: 2, acknowledged: 1 },
        egress_kills: vec![100 * SECOND + SECOND / 2],
        ..Ledger::default()
    };
    (ledger, books)
}

#[test]
fn books_in_order_have_no_findings() {
    let (ledger, books) = in_order();
    assert_eq!(check(&ledger, &books).0, []);
}

type Damage = fn(&mut Ledger, &mut Books);

#[test]
fn every_damage_is_found_and_called_what_it_is() {
    let damages: &[(&str, Kind, Damage)] = &[
        ("a row the scheduler lost", Kind::Lost, |_, books| drop(books.scheduler.deltas.pop())),
        ("a row the agent lost", Kind::Doubled, |_, books| drop(books.agent.deltas.pop())),
        ("the first row, lost on both sides", Kind::Lost, |_, books| {
            books.agent.deltas.remove(0);
            books.scheduler.deltas.remove(0);
        }),
        ("the last row, lost on both sides", Kind::Lost, |_, books| {
            books.agent.deltas.pop();
            books.scheduler.deltas.pop();
        }),
        ("a row twice", Kind::Doubled, |_, books| {
            books.scheduler.deltas.push(books.scheduler.deltas[0].clone());
        }),
        ("the same time under a number of its own", Kind::Doubled, |_, books| {
            let again = Delta { seq: 3, ..books.agent.deltas[1].clone() };
            books.agent.deltas.push(again.clone());
            books.scheduler.deltas.push(again);
        }),
        ("an amount that changed on the way", Kind::Wrong, |_, books| {
            books.scheduler.deltas[0].amounts[3] += 1
        }),
        ("all rows of an execution", Kind::Lost, |_, books| {
            books.agent.deltas.clear();
            books.scheduler.deltas.clear();
            books.scheduler.rollups.clear();
        }),
        ("a roll-up that missed a row", Kind::Lost, |_, books| {
            books.scheduler.rollups.values_mut().for_each(|sums| sums[WALL] -= 30 * SECOND);
        }),
        ("a roll-up that took a row twice", Kind::Doubled, |_, books| {
            books.scheduler.rollups.values_mut().for_each(|sums| sums[3] += 7);
        }),
        ("rows that never left the host", Kind::Lost, |_, books| books.agent.outbox = 1),
        ("more time than there was", Kind::Doubled, |ledger, _| {
            let sandbox = ledger.sandboxes.get_mut("sbx_1").expect("there");
            sandbox.clock = Clock::default();
        }),
        ("an audit row removed", Kind::Lost, |_, books| drop(books.scheduler.events.remove(0))),
        ("an audit row of a cut call removed", Kind::Lost, |_, books| drop(books.scheduler.events.remove(1))),
        ("an audit row under a second id", Kind::Doubled, |_, books| {
            let again = Event { id: "evt_other".into(), ..books.scheduler.events[0].clone() };
            books.scheduler.events.push(again);
        }),
        ("an audit row of nothing", Kind::Doubled, |_, books| {
            books.scheduler.events.push(event("/phantom", "allow", Some(200)));
        }),
        ("an audit row without end", Kind::Lost, |_, books| books.scheduler.events[0].action = None),
        ("an audit row that says otherwise", Kind::Wrong, |_, books| {
            books.scheduler.events[0].action = Some("reject".into());
        }),
        ("an abort without a kill", Kind::Wrong, |ledger, _| ledger.egress_kills.clear()),
        ("a call that arrived twice", Kind::Doubled, |ledger, _| {
            ledger.calls.get_mut("/1").expect("there").seen = 2;
        }),
        ("a control audit row lost", Kind::Lost, |_, books| drop(books.scheduler.actions.remove(1))),
        ("a control audit row twice", Kind::Doubled, |_, books| {
            books.scheduler.actions.push(books.scheduler.actions[0].clone());
        }),
        ("a secret that was stored and not noted", Kind::Lost, |_, books| {
            drop(books.scheduler.actions.pop())
        }),
        ("a create that was acknowledged and lost", Kind::Lost, |_, books| books.scheduler.sandboxes.clear()),
        ("a create that was done twice", Kind::Doubled, |_, books| {
            let again = Sandbox { id: "sbx_2".into(), ..books.scheduler.sandboxes[0].clone() };
            books.scheduler.sandboxes.push(again);
        }),
        ("a sandbox that lives on", Kind::Wrong, |_, books| {
            books.agent.sandboxes.insert("sbx_1".into(), "running".into());
        }),
        ("an execution that never ended", Kind::Leaked, |_, books| {
            books.agent.executions[0].ended_us = None;
        }),
        ("what a client saw", Kind::Wrong, |ledger, _| ledger.violations.push("a marker is gone".into())),
    ];
    for (what, kind, damage) in damages {
        let (mut ledger, mut books) = in_order();
        damage(&mut ledger, &mut books);
        let findings = check(&ledger, &books);
        assert!(findings.count(*kind) > 0, "{what} was not found as {kind:?}: {:#?}", findings.0);
    }
}

#[test]
fn a_killed_vmm_may_take_a_minute_with_it_and_no_more() {
    let (mut ledger, mut books) = in_order();
    let drop_last = |books: &mut Books| {
        books.agent.deltas.pop();
        books.scheduler.deltas.pop();
        books.scheduler.rollups.values_mut().for_each(|sums| {
            sums.iter_mut().for_each(|sum| *sum -= 7);
            sums[WALL] = 60 * SECOND;
        });
        books.agent.executions[0].end_cause = Some("vmm_crashed".into());
    };
    drop_last(&mut books);
    ledger.sandboxes.get_mut("sbx_1").expect("there").clock.gap = ledger::GAP_PER_VMM_KILL;
    assert_eq!(check(&ledger, &books).0, []);
    ledger.sandboxes.get_mut("sbx_1").expect("there").clock.gap = Duration::from_secs(10);
    assert_eq!(check(&ledger, &books).count(Kind::Lost), 1);
}
