//! Fresh ids: the one place that gives a typed id its time and its randomness.

use roost_domain::Ulid;
use roost_domain::id::Id;

/// A new id that no other call, process or host has made.
pub fn fresh<T: Id>() -> T {
    T::from_ulid(Ulid::generate())
}

#[cfg(test)]
mod tests {
    use super::*;
    use roost_domain::id::{ExecutionId, SandboxId};
    use std::collections::BTreeSet;

    #[test]
    fn fresh_ids_differ_and_carry_the_time() {
        let ids: BTreeSet<ExecutionId> = (0..1000).map(|_| fresh()).collect();
        assert_eq!(ids.len(), 1000);
        let now_ms = u64::try_from(crate::clock::now_us() / 1000).unwrap();
        let sandbox: SandboxId = fresh();
        assert!(now_ms.abs_diff(sandbox.ulid().timestamp_ms()) < 60_000, "{sandbox}");
    }
}
