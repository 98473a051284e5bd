//! The scheduler, two hosts and a network that loses, doubles and reorders, against the ordering rules.

#![allow(clippy::unwrap_used, reason = "a test")]

use proptest::collection::vec;
use proptest::prelude::*;
use roost_domain::desired::{Adoption, Cause, Offer, Placement, Report, Row, Run, Standing};

#[derive(Debug, Clone, Copy)]
enum Event {
    /// A user's call.
    Command(Run),
    /// A host's own decision.
    Local(usize, Run),
    /// The scheduler tells the present host what it wants.
    SendOffer,
    /// A host tells what it did by itself.
    SendReport(usize),
    /// The scheduler gives the present host up, and tells it so.
    GiveUp,
    SendFence,
    /// The scheduler places the sandbox on a host, if it may.
    Place(usize),
    /// One of the messages under way arrives; it may arrive again later.
    Deliver(usize),
    /// One of them is lost.
    Lose(usize),
}

#[derive(Debug, Clone, Copy)]
enum Message {
    Offer(usize, Offer),
    Report(Report),
    Fence(usize, u64),
    Fenced(usize, u64),
}

#[derive(Debug)]
struct World {
    row: Row,
    placement: Placement<usize>,
    hosts: [Option<Standing>; 2],
    wire: Vec<Message>,
    /// Generation of the last decision a user made.
    commanded: u64,
}

impl World {
    fn new() -> Self {
        let placement = Placement::Nowhere { epoch: 0 }.place(0).unwrap();
        Self { row: Row::new(Run::Running), placement, hosts: [None, None], wire: Vec::new(), commanded: 1 }
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::Command(run) => {
                let next = self.row.command(run);
                if next != self.row {
                    self.commanded = next.desired.generation;
                }
                self.row = next;
            }
            Event::Local(host, run) => {
                if let Some(standing) = &mut self.hosts[host] {
                    let _ = standing.transition(run, Cause::Idle);
                }
            }
            Event::SendOffer => {
                if let Placement::On { host, .. } = self.placement {
                    self.wire.push(Message::Offer(host, self.row.offer()));
                }
            }
            Event::SendReport(host) => {
                self.wire
                    .extend(self.hosts[host].and_then(|standing| standing.report()).map(Message::Report));
            }
            Event::GiveUp => self.placement = self.placement.give_up(),
            Event::SendFence => {
                if let Placement::Fencing { host, epoch } = self.placement {
                    self.wire.push(Message::Fence(host, epoch));
                }
            }
            Event::Place(host) => {
                if let Some(next) = self.placement.place(host) {
                    let Placement::On { epoch, .. } = next else { unreachable!("placed") };
                    self.placement = next;
                    self.row = self.row.replaced(epoch);
                    // What the former host decided last and never reported died with its placement.
                    self.commanded = self.row.desired.generation;
                }
            }
            Event::Deliver(index) if !self.wire.is_empty() => {
                self.deliver(self.wire[index % self.wire.len()])
            }
            Event::Lose(index) if !self.wire.is_empty() => {
                let index = index % self.wire.len();
                self.wire.swap_remove(index);
            }
            Event::Deliver(_) | Event::Lose(_) => {}
        }
    }

    fn deliver(&mut self, message: Message) {
        match message {
            Message::Offer(host, offer) => match &mut self.hosts[host] {
                Some(standing) => {
                    let before = *standing;
                    standing.receive(offer);
                    let (old, new) = (before.desired, standing.desired);
                    assert!(
                        (new.placement_epoch, new.generation) >= (old.placement_epoch, old.generation),
                        "went back: {before:?} {offer:?}"
                    );
                }
                none => *none = Some(Standing::new(offer)),
            },
            Message::Report(report) => {
                if let Adoption::Adopt(row) = self.row.decide_adoption(&report) {
                    let base = report.local.base_generation;
                    assert!(base >= self.commanded, "{base} undoes the call of {}", self.commanded);
                    self.row = row;
                }
            }
            Message::Fence(host, epoch) => {
                // A host that never heard of the sandbox keeps the fence all the same.
                let standing =
                    self.hosts[host].get_or_insert_with(|| Standing::new(Row::new(Run::Stopped).offer()));
                standing.fence(epoch);
                self.wire.push(Message::Fenced(host, epoch));
            }
            Message::Fenced(host, epoch) => self.placement = self.placement.confirmed(host, epoch),
        }
    }

    /// No loss any more: everybody says what they have until nothing changes.
    fn settle(&mut self) {
        self.wire.clear();
        for _ in 0..6 {
            for event in [Event::SendFence, Event::SendOffer, Event::SendReport(0), Event::SendReport(1)] {
                self.apply(event);
            }
            while let Some(message) = self.wire.pop() {
                self.deliver(message);
            }
        }
    }

    fn serving(&self) -> usize {
        let serves = |standing: &&Standing| standing.target() == Some(Run::Running);
        self.hosts.iter().flatten().filter(serves).count()
    }
}

fn run() -> impl Strategy<Value = Run> {
    prop_oneof![
        5 => Just(Run::Running),
        5 => Just(Run::Paused),
        3 => Just(Run::Stopped),
        1 => Just(Run::Destroyed),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => run().prop_map(Event::Command),
        4 => (0usize..2, run()).prop_map(|(host, run)| Event::Local(host, run)),
        5 => Just(Event::SendOffer),
        5 => (0usize..2).prop_map(Event::SendReport),
        1 => Just(Event::GiveUp),
        2 => Just(Event::SendFence),
        2 => (0usize..2).prop_map(Event::Place),
        12 => any::<usize>().prop_map(Event::Deliver),
        3 => any::<usize>().prop_map(Event::Lose),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn both_sides_agree_in_the_end_and_a_call_is_never_lost(events in vec(event(), 0..60)) {
        let mut world = World::new();
        for event in &events {
            world.apply(*event);
            prop_assert!(world.serving() <= 1, "two hosts serve: {world:?}");
        }
        world.settle();
        prop_assert!(world.serving() <= 1);
        if let Placement::On { host, epoch } = world.placement {
            let standing = world.hosts[host].unwrap();
            prop_assert_eq!(standing.target(), Some(world.row.desired.run));
            prop_assert_eq!(standing.desired, world.row.desired);
            prop_assert_eq!(standing.report(), None);
            prop_assert_eq!(standing.desired.placement_epoch, epoch);
        }
    }

    /// A host that hears of a call follows it, whatever it had decided before.
    #[test]
    fn a_call_overrules_what_a_host_decided_before_it(locals in vec(run(), 0..4), call in run()) {
        let row = Row::new(Run::Running);
        let mut standing = Standing::new(row.offer());
        for local in locals {
            let _ = standing.transition(local, Cause::Timeout);
        }
        let row = row.command(call);
        standing.receive(row.offer());
        prop_assert_eq!(standing.target(), Some(call));
    }
}
