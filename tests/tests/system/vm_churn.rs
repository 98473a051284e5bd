//! Sandboxes come and go, and nothing grows.

use std::time::Duration;

use roost_tests::churn::{self, Trial};

#[test]
fn vm_churn_leaves_no_growth() {
    let trial = Trial { time: Duration::from_secs(15), sandboxes: 4, at_once: 2 };
    let outcome = churn::run(&trial).unwrap();
    assert!(outcome.turns.iter().all(|turns| *turns > 0), "{outcome:#?}");
    assert_eq!(outcome.growth, Vec::<String>::new(), "{outcome:#?}");
    let last = &outcome.looks[2].host;
    for kind in ["network namespaces", "cgroups", "run directories", "disks and snapshots"] {
        assert_eq!(last[kind], 0, "{kind}");
    }
}
