//! How much of the audit waits on this host, whose it is, and who may add to it.
//!
//! Owns the count of what every segment holds. A sandbox begins calls as long as what it has waiting is less
//! than what is still free (the dynamic threshold of shared packet buffers): one that floods while the
//! scheduler is away fills half of the room, two a third each, and whoever comes after them finds some. What
//! a segment holds is given back when the segment is gone. Ends of calls are counted and never refused: they
//! come on top, and there are no more of them than calls in progress.
//!
//! The count lives as long as the process: what it finds at its start counts against the total and is nobody's.
//! Touches no file: that is `journal` and `segment`.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use roost_domain::Ulid;
use roost_domain::sabotage::Defence;

/// Why a call may not begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoRoom {
    #[error("{0} unshipped audit bytes are the most this host keeps")]
    Full(u64),
    #[error("{own} unshipped audit bytes of this sandbox are its share while {free} are free on this host")]
    Share { own: u64, free: u64 },
}

#[derive(Debug)]
pub(super) struct Room {
    limit: u64,
    /// Else nobody is refused and no owner is known.
    is_shared: bool,
    books: Mutex<Books>,
}

#[derive(Debug, Default)]
struct Books {
    total: u64,
    owners: HashMap<Box<str>, u64>,
    segments: HashMap<Ulid, Held>,
}

/// What one segment holds: `bytes` is what its owners hold of it, and what is nobody's.
#[derive(Debug, Default)]
struct Held {
    bytes: u64,
    owners: HashMap<Box<str>, u64>,
}

impl Room {
    /// Room in which what was found counts and is nobody's.
    pub(super) fn new(limit: u64, is_shared: bool, found: impl IntoIterator<Item = (Ulid, u64)>) -> Self {
        let mut books = Books::default();
        for (segment, bytes) in found {
            books.segments.entry(segment).or_default().bytes += bytes;
            books.total += bytes;
        }
        Self { limit, is_shared, books: Mutex::new(books) }
    }

    /// Takes room for a call that would begin.
    pub(super) fn take(&self, segment: Ulid, owner: &str, bytes: usize) -> Result<(), NoRoom> {
        let mut books = self.books();
        if self.is_shared {
            books.admit(self.limit, owner)?;
        }
        self.add(&mut books, segment, owner, bytes);
        Ok(())
    }

    /// Counts what is written whether or not there is room.
    pub(super) fn count(&self, segment: Ulid, owner: &str, bytes: usize) {
        self.add(&mut self.books(), segment, owner, bytes);
    }

    /// Gives back what was taken for a call that did not begin after all.
    pub(super) fn give_back(&self, segment: Ulid, owner: &str, bytes: usize) {
        let bytes = bytes as u64;
        let mut books = self.books();
        books.total -= bytes;
        if let Some(held) = books.segments.get_mut(&segment) {
            held.bytes -= bytes;
            if self.is_shared {
                subtract(&mut held.owners, owner, bytes);
                subtract(&mut books.owners, owner, bytes);
            }
        }
    }

    /// Gives back what a segment held that is gone; repeatable.
    pub(super) fn forget(&self, segment: Ulid) {
        let mut books = self.books();
        let Some(held) = books.segments.remove(&segment) else { return };
        books.total -= held.bytes;
        for (owner, bytes) in held.owners {
            subtract(&mut books.owners, &owner, bytes);
        }
    }

    /// Whether more is held than the limit says.
    pub(super) fn is_exceeded(&self) -> bool {
        self.books().total > self.limit
    }

    fn add(&self, books: &mut Books, segment: Ulid, owner: &str, bytes: usize) {
        let bytes = bytes as u64;
        books.total += bytes;
        let held = books.segments.entry(segment).or_default();
        held.bytes += bytes;
        if self.is_shared {
            add(&mut held.owners, owner, bytes);
            add(&mut books.owners, owner, bytes);
        }
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Books {
    fn admit(&self, limit: u64, owner: &str) -> Result<(), NoRoom> {
        let free = limit.saturating_sub(self.total);
        if free == 0 {
            return Err(NoRoom::Full(self.total));
        }
        match self.owners.get(owner) {
            Some(&own) if own >= free && !Defence::AuditShare.is_off() => Err(NoRoom::Share { own, free }),
            _ => Ok(()),
        }
    }
}

/// Keeps a copy of the name only when there is none yet: this is done for every record.
fn add(owners: &mut HashMap<Box<str>, u64>, owner: &str, bytes: u64) {
    match owners.get_mut(owner) {
        Some(own) => *own += bytes,
        None => drop(owners.insert(owner.into(), bytes)),
    }
}

fn subtract(owners: &mut HashMap<Box<str>, u64>, owner: &str, bytes: u64) {
    if let Some(own) = owners.get_mut(owner) {
        *own -= bytes;
        if *own == 0 {
            owners.remove(owner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RECORD: usize = 300;

    fn room(limit: u64) -> Room {
        Room::new(limit, true, [])
    }

    /// Begins calls until one is refused; what the owner then has.
    fn flood(room: &Room, segment: Ulid, owner: &str) -> u64 {
        while room.take(segment, owner, RECORD).is_ok() {}
        room.books().owners.get(owner).copied().unwrap_or(0)
    }

    #[test]
    fn f2_one_hog_gets_half_two_a_third_and_a_newcomer_finds_room() {
        const LIMIT: u64 = 300_000;
        let near = |share: u64, part: u64| share.abs_diff(LIMIT / part) <= 2 * RECORD as u64;
        let alone = room(LIMIT);
        assert!(near(flood(&alone, Ulid(1), "a"), 2));
        let two = room(LIMIT);
        let mut goes_on = true;
        while goes_on {
            goes_on = two.take(Ulid(1), "a", RECORD).is_ok() | two.take(Ulid(1), "b", RECORD).is_ok();
        }
        let shares = ["a", "b"].map(|owner| two.books().owners[owner]);
        assert!(shares.into_iter().all(|share| near(share, 3)), "{shares:?}");
        for room in [alone, two] {
            assert_eq!(room.take(Ulid(1), "c", RECORD), Ok(()));
        }
    }

    #[test]
    fn a_refusal_says_whose_fault_it_is() {
        let room = room(1000);
        let own = flood(&room, Ulid(1), "a");
        let refused = room.take(Ulid(1), "a", RECORD).unwrap_err();
        assert_eq!(refused, NoRoom::Share { own, free: 1000 - own });
        room.count(Ulid(1), "b", 1000);
        assert_eq!(room.take(Ulid(1), "c", RECORD), Err(NoRoom::Full(1000 + own)));
    }

    #[test]
    fn f2_what_is_shipped_gives_the_share_back() {
        let room = room(100_000);
        flood(&room, Ulid(1), "a");
        assert!(room.take(Ulid(2), "a", RECORD).is_err());
        room.forget(Ulid(1));
        room.forget(Ulid(1));
        assert_eq!(room.take(Ulid(2), "a", RECORD), Ok(()));
        room.forget(Ulid(2));
        assert_eq!(room.books().total, 0);
        assert!(room.books().owners.is_empty(), "an owner of nothing is not remembered");
    }

    #[test]
    fn what_was_found_is_nobody_s_and_takes_room() {
        let room = Room::new(1000, true, [(Ulid(1), 400), (Ulid(2), 200)]);
        assert_eq!(flood(&room, Ulid(3), "a"), 300, "less than the 400 that are free, and then no more");
        room.forget(Ulid(1));
        assert_eq!(room.take(Ulid(3), "a", RECORD), Ok(()));
    }

    #[test]
    fn a_journal_of_one_owner_refuses_nobody() {
        let room = Room::new(1000, false, []);
        for _ in 0..10 {
            assert_eq!(room.take(Ulid(1), "a", RECORD), Ok(()));
        }
        assert!(room.is_exceeded());
        assert!(room.books().owners.is_empty());
        room.forget(Ulid(1));
        assert!(!room.is_exceeded());
    }

    #[derive(Debug, Clone)]
    enum Step {
        Begin {
            owner: usize,
            bytes: usize,
        },
        /// A call that the disk did not take.
        Undone {
            owner: usize,
            bytes: usize,
        },
        End {
            owner: usize,
            bytes: usize,
        },
        Rotate,
        Ship,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let record = || (0usize..4, 1usize..MOST);
        let step = prop_oneof![
            6 => record().prop_map(|(owner, bytes)| Step::Begin { owner, bytes }),
            1 => record().prop_map(|(owner, bytes)| Step::Undone { owner, bytes }),
            2 => record().prop_map(|(owner, bytes)| Step::End { owner, bytes }),
            1 => Just(Step::Rotate),
            1 => Just(Step::Ship),
        ];
        prop::collection::vec(step, 0..200)
    }

    const MOST: usize = 500;
    const OWNERS: [&str; 4] = ["a", "b", "c", "d"];

    proptest! {
        /// Against a list of everything that was written: the sums are its sums, who was let in had less than
        /// was free, who was refused had not, and when all is shipped nothing is left.
        #[test]
        fn the_books_are_the_sum_of_what_is_written(limit in 1u64..20_000, found in 0u64..2000, steps in steps()) {
            let room = Room::new(limit, true, [(Ulid(0), found)]);
            let mut written: Vec<(Ulid, Option<usize>, u64)> = vec![(Ulid(0), None, found)];
            let (mut oldest, mut current) = (0u128, 1u128);
            for step in steps {
                let sum = |of: Option<usize>| -> u64 {
                    let all = written.iter().filter(|(_, owner, _)| of.is_none() || *owner == of);
                    all.map(|(_, _, bytes)| bytes).sum()
                };
                match step {
                    Step::Begin { owner, bytes } => {
                        let (own, free) = (sum(Some(owner)), limit.saturating_sub(sum(None)));
                        let taken = room.take(Ulid(current), OWNERS[owner], bytes);
                        prop_assert_eq!(taken.is_ok(), own < free);
                        if taken.is_ok() {
                            written.push((Ulid(current), Some(owner), bytes as u64));
                        }
                    }
                    Step::Undone { owner, bytes } => {
                        if room.take(Ulid(current), OWNERS[owner], bytes).is_ok() {
                            room.give_back(Ulid(current), OWNERS[owner], bytes);
                        }
                    }
                    Step::End { owner, bytes } => {
                        room.count(Ulid(current), OWNERS[owner], bytes);
                        written.push((Ulid(current), Some(owner), bytes as u64));
                    }
                    Step::Rotate => current += 1,
                    Step::Ship if oldest < current => {
                        room.forget(Ulid(oldest));
                        written.retain(|(segment, _, _)| *segment != Ulid(oldest));
                        oldest += 1;
                    }
                    Step::Ship => {}
                }
                let books = room.books();
                prop_assert_eq!(books.total, written.iter().map(|(_, _, bytes)| bytes).sum::<u64>());
                for (index, owner) in OWNERS.iter().enumerate() {
                    let all = written.iter().filter(|(_, owner, _)| *owner == Some(index));
                    let own: u64 = all.map(|(_, _, bytes)| bytes).sum();
                    prop_assert_eq!(books.owners.get(*owner).copied().unwrap_or(0), own);
                }
            }
            for segment in oldest..=current {
                room.forget(Ulid(segment));
            }
            let books = room.books();
            prop_assert!(books.total == 0 && books.owners.is_empty() && books.segments.is_empty());
        }

        /// However sandboxes take turns, without ends on top: each has at most half, and one that comes new is let in.
        #[test]
        fn f2_no_order_of_floods_shuts_a_newcomer_out(
            turns in prop::collection::vec((0usize..4, 1usize..MOST), 0..2000),
        ) {
            const LIMIT: u64 = 100_000;
            let room = room(LIMIT);
            for (owner, bytes) in turns {
                let _ = room.take(Ulid(1), OWNERS[owner], bytes);
                prop_assert!(room.books().owners.values().all(|own| *own <= LIMIT / 2 + MOST as u64));
            }
            for owner in OWNERS {
                flood(&room, Ulid(1), owner);
            }
            prop_assert_eq!(room.take(Ulid(1), "newcomer", MOST), Ok(()));
        }
    }
}
