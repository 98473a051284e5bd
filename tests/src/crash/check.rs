//! Compares what the clients know with what the product wrote down. Pure: every disagreement is a finding.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::books::{AMOUNTS, Amounts, Books, Delta, Event, WALL};
use super::ledger::Ledger;

/// Clocks of two processes, and what it takes to read them.
const CLOCK_SLACK_US: i64 = 250_000;
/// Between the death of egress and the aborted rows of its successor.
const RECOVERY_US: i64 = 60_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Acknowledged, and not there any more.
    Lost,
    /// There more often than it happened.
    Doubled,
    /// Left on the machine.
    Leaked,
    /// Two sides disagree otherwise.
    Wrong,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub kind: Kind,
    pub text: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {}", format!("{:?}", self.kind).to_lowercase(), self.text)
    }
}

/// Findings so far.
#[derive(Debug, Default)]
pub struct Findings(pub Vec<Finding>);

impl Findings {
    pub fn add(&mut self, kind: Kind, text: impl Into<String>) {
        self.0.push(Finding { kind, text: text.into() });
    }

    pub fn count(&self, kind: Kind) -> usize {
        self.0.iter().filter(|finding| finding.kind == kind).count()
    }
}

/// Everything the books and the ledger have to say to each other, once all sandboxes are destroyed.
pub fn check(ledger: &Ledger, books: &Books) -> Findings {
    let mut findings = Findings::default();
    usage_of_both_sides(books, &mut findings);
    usage_in_itself(books, &mut findings);
    rollups(books, &mut findings);
    usage_of_clients(ledger, books, &mut findings);
    calls(ledger, books, &mut findings);
    aborted(ledger, books, &mut findings);
    control(ledger, books, &mut findings);
    ends(books, &mut findings);
    for violation in &ledger.violations {
        findings.add(Kind::Wrong, violation.clone());
    }
    findings
}

type Key<'a> = (&'a str, i64);

/// The agent's rows and the scheduler's are the same.
fn usage_of_both_sides(books: &Books, findings: &mut Findings) {
    let theirs = keyed(&books.scheduler.deltas, "the scheduler", findings);
    let ours = keyed(&books.agent.deltas, "the agent", findings);
    for (key, delta) in &ours {
        match theirs.get(key) {
            None => {
                findings.add(Kind::Lost, format!("the scheduler has no usage {key:?} of {}", delta.sandbox))
            }
            Some(other) if other != delta => {
                findings.add(Kind::Wrong, format!("usage {key:?} differs: {delta:?} and {other:?}"));
            }
            Some(_) => {}
        }
    }
    for key in theirs.keys().filter(|key| !ours.contains_key(*key)) {
        findings.add(Kind::Doubled, format!("the scheduler has usage {key:?} that no agent metered"));
    }
    if books.agent.outbox > 0 {
        findings.add(Kind::Lost, format!("{} rows never reached the scheduler", books.agent.outbox));
    }
}

fn keyed<'a>(deltas: &'a [Delta], whose: &str, findings: &mut Findings) -> BTreeMap<Key<'a>, &'a Delta> {
    let mut keyed = BTreeMap::new();
    for delta in deltas {
        let key = (delta.execution.as_str(), delta.seq);
        if keyed.insert(key, delta).is_some() {
            findings.add(Kind::Doubled, format!("{whose} has usage {key:?} twice"));
        }
    }
    keyed
}

/// The rows of an execution touch: none missing, none twice, the first where it began.
fn usage_in_itself(books: &Books, findings: &mut Findings) {
    let mut rows: BTreeMap<&str, Vec<&Delta>> = BTreeMap::new();
    for delta in &books.agent.deltas {
        rows.entry(&delta.execution).or_default().push(delta);
        if delta.amounts[WALL] != delta.to_us - delta.from_us {
            let (id, seq) = (&delta.execution, delta.seq);
            findings.add(Kind::Wrong, format!("usage {seq} of {id} is not as long as it lasts"));
        }
    }
    for execution in &books.agent.executions {
        let Some(started_us) = execution.started_us else { continue };
        let mine = rows.remove(execution.id.as_str()).unwrap_or_default();
        let id = &execution.id;
        let killed = execution.end_cause.as_deref() == Some("vmm_crashed");
        if mine.is_empty() && !killed && execution.ended_us.is_some_and(|ended| ended > started_us) {
            findings.add(Kind::Lost, format!("execution {id} ran and has no usage at all"));
        }
        let (mut seq, mut at_us) = (1, started_us);
        for delta in mine {
            match delta.seq.cmp(&seq).then(delta.from_us.cmp(&at_us)) {
                std::cmp::Ordering::Equal => {}
                std::cmp::Ordering::Greater => {
                    findings
                        .add(Kind::Lost, format!("before usage {} of {id} something is missing", delta.seq));
                }
                std::cmp::Ordering::Less => {
                    findings
                        .add(Kind::Doubled, format!("usage {} of {id} overlaps the one before", delta.seq));
                }
            }
            (seq, at_us) = (delta.seq + 1, delta.to_us);
        }
        if execution.ended_us.is_some_and(|ended_us| at_us > ended_us + CLOCK_SLACK_US) {
            findings.add(Kind::Doubled, format!("execution {id} is metered beyond its end"));
        }
    }
    for id in rows.keys() {
        findings.add(Kind::Wrong, format!("usage of {id}, which is no execution that ran"));
    }
}

fn rollups(books: &Books, findings: &mut Findings) {
    let mut sums: BTreeMap<&str, Amounts> = BTreeMap::new();
    for delta in &books.scheduler.deltas {
        let sum = sums.entry(&delta.sandbox).or_default();
        for (sum, amount) in sum.iter_mut().zip(delta.amounts) {
            *sum += amount;
        }
    }
    let none = Amounts::default();
    let ids: BTreeSet<&str> =
        sums.keys().copied().chain(books.scheduler.rollups.keys().map(String::as_str)).collect();
    for id in ids {
        let rolled = books.scheduler.rollups.get(id).unwrap_or(&none);
        let summed = sums.get(id).unwrap_or(&none);
        for (name, (rolled, summed)) in AMOUNTS.iter().zip(rolled.iter().zip(summed)) {
            let kind = match rolled.cmp(summed) {
                std::cmp::Ordering::Equal => continue,
                std::cmp::Ordering::Less => Kind::Lost,
                std::cmp::Ordering::Greater => Kind::Doubled,
            };
            findings.add(kind, format!("{name} of {id}: rolled up {rolled}, the rows sum to {summed}"));
        }
    }
}

/// What was metered lies between what clients saw running and what they asked to run.
fn usage_of_clients(ledger: &Ledger, books: &Books, findings: &mut Findings) {
    for (id, sandbox) in &ledger.sandboxes {
        let mine = books.scheduler.deltas.iter().filter(|delta| delta.sandbox == *id);
        let metered_us: i64 = mine.map(|delta| delta.amounts[WALL]).sum();
        let (least, most) = sandbox.clock.bounds();
        let (least_us, most_us) = (least.as_micros() as i64, most.as_micros() as i64);
        let seconds = |us: i64| us as f64 / 1e6;
        if metered_us + CLOCK_SLACK_US < least_us {
            let (metered, least) = (seconds(metered_us), seconds(least_us));
            findings
                .add(Kind::Lost, format!("{id} was seen running {least:.1} s, metered are {metered:.1} s"));
        }
        if metered_us > most_us + CLOCK_SLACK_US {
            let (metered, most) = (seconds(metered_us), seconds(most_us));
            let text = format!("{id} ran {most:.1} s at most, metered are {metered:.1} s");
            findings.add(Kind::Doubled, text);
        }
    }
}

/// Each call that arrived outside, or was answered inside, is one completed row.
fn calls(ledger: &Ledger, books: &Books, findings: &mut Findings) {
    let mut rows: BTreeMap<&str, Vec<&Event>> = BTreeMap::new();
    let mut ids = BTreeSet::new();
    for event in &books.scheduler.events {
        rows.entry(&event.path).or_default().push(event);
        if !ids.insert(&event.id) {
            findings.add(Kind::Doubled, format!("event {} is there twice", event.id));
        }
    }
    for (path, call) in &ledger.calls {
        let mine = rows.remove(path.as_str()).unwrap_or_default();
        if call.seen > 1 {
            findings.add(Kind::Doubled, format!("{path} was asked once and arrived {} times", call.seen));
        }
        match mine[..] {
            [] if call.seen > 0 || call.status.is_some() => {
                findings.add(Kind::Lost, format!("{path} was carried out and has no audit row"));
            }
            [] => {}
            [event] => call_row(path, call.status, call.seen, event, findings),
            _ => findings.add(Kind::Doubled, format!("{path} has {} audit rows", mine.len())),
        }
    }
    for path in rows.keys() {
        findings.add(Kind::Doubled, format!("an audit row of {path}, which nobody asked for"));
    }
}

fn call_row(path: &str, status: Option<u16>, seen: usize, event: &Event, findings: &mut Findings) {
    let Some(action) = event.action.as_deref() else {
        findings.add(Kind::Lost, format!("the audit row of {path} has no end"));
        return;
    };
    let is_aborted = event.rejected_by.as_deref() == Some("aborted");
    if seen > 0 && action == "reject" {
        findings.add(Kind::Wrong, format!("{path} arrived outside, its row says {action}"));
    }
    // A process that was killed after the answer and before its row's end says aborted.
    if status == Some(200) && !is_aborted && (action, event.status) != ("allow", Some(200)) {
        let said = event.status;
        findings.add(Kind::Wrong, format!("{path} was answered with 200, its row says {action} {said:?}"));
    }
}

/// Rows are aborted by a death of egress, and by nothing else.
fn aborted(ledger: &Ledger, books: &Books, findings: &mut Findings) {
    for event in &books.scheduler.events {
        if event.rejected_by.as_deref() != Some("aborted") {
            continue;
        }
        let until_us = event.completed_us.unwrap_or(i64::MAX);
        let is_explained = ledger.egress_kills.iter().any(|kill_us| {
            event.time_us <= kill_us + CLOCK_SLACK_US
                && kill_us - CLOCK_SLACK_US <= until_us
                && until_us - kill_us <= RECOVERY_US
        });
        if !is_explained {
            findings.add(Kind::Wrong, format!("{} is aborted, and nobody killed egress then", event.path));
        }
    }
}

/// What the API acknowledged was done once, and is in the tenant's audit.
fn control(ledger: &Ledger, books: &Books, findings: &mut Findings) {
    let mut actions: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for (action, resource) in &books.scheduler.actions {
        *actions.entry((action, resource)).or_default() += 1;
    }
    let of = |action: &str, resource: &str| actions.get(&(action, resource)).copied().unwrap_or_default();
    for (name, id) in &ledger.creates {
        let named: Vec<_> =
            books.scheduler.sandboxes.iter().filter(|sandbox| sandbox.name == *name).collect();
        match (id, named.len()) {
            (_, 2..) => findings.add(Kind::Doubled, format!("{name} was created {} times", named.len())),
            (Some(id), _) if named.first().is_none_or(|sandbox| sandbox.id != *id) => {
                findings.add(Kind::Lost, format!("{name} was created as {id} and is not there"));
            }
            _ => {}
        }
        for sandbox in named {
            once(of("sandbox.created", &sandbox.id), &format!("sandbox.created of {}", sandbox.id), findings);
        }
    }
    for (id, sandbox) in &ledger.sandboxes {
        if sandbox.destroy_acknowledged {
            once(of("sandbox.destroyed", id), &format!("sandbox.destroyed of {id}"), findings);
        }
    }
    let all = |names: &[&str]| {
        let counts = actions.iter().filter(|((action, _), _)| names.contains(action));
        counts.map(|(_, count)| count).sum::<usize>()
    };
    let issued = all(&["preview.share_token.issued"]);
    within(issued, ledger.shares.acknowledged, ledger.shares.asked, "shares issued", findings);
    let stored = all(&["secret.created", "secret.updated", "secret.rotated"]);
    within(stored, ledger.secrets.acknowledged, ledger.secrets.asked, "secrets stored", findings);
}

fn once(count: usize, what: &str, findings: &mut Findings) {
    match count {
        1 => {}
        0 => findings.add(Kind::Lost, format!("the audit has no {what}")),
        _ => findings.add(Kind::Doubled, format!("the audit has {what} {count} times")),
    }
}

fn within(count: usize, least: usize, most: usize, what: &str, findings: &mut Findings) {
    if count < least {
        findings.add(Kind::Lost, format!("{what}: the audit has {count}, {least} were acknowledged"));
    }
    if count > most {
        findings.add(Kind::Doubled, format!("{what}: the audit has {count}, {most} were asked for"));
    }
}

/// Nothing is left of what was destroyed, on either side.
fn ends(books: &Books, findings: &mut Findings) {
    for sandbox in &books.scheduler.sandboxes {
        let theirs = books.agent.sandboxes.get(&sandbox.id).map(String::as_str);
        if sandbox.state != "destroyed" || !matches!(theirs, Some("destroyed") | None) {
            let text =
                format!("{} is {} at the scheduler, {theirs:?} on its host", sandbox.id, sandbox.state);
            findings.add(Kind::Wrong, text);
        }
    }
    for execution in books.agent.executions.iter().filter(|execution| execution.ended_us.is_none()) {
        findings.add(Kind::Leaked, format!("execution {} never ended", execution.id));
    }
}

#[cfg(test)]
mod tests;
