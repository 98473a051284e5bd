//! Whatever carries a name of the instance is found and can be removed.

use std::fs;

use roost_agent::host::cgroup::{self, Limits};
use roost_agent::host::process::VmmProcess;
use roost_agent::host::{netns, reclaim};

use crate::cgroup::start;
use crate::scratch::Scratch;

const LIMITS: Limits = Limits { memory_bytes: 64 << 20, vcpus: 1, processes: 16 };

#[tokio::test]
async fn every_kind_of_leftover_is_found_and_removed() {
    let scratch = Scratch::new("reclaim");
    let [with_netns, with_group, with_dir, with_all] = [1, 2, 3, 4].map(|number| scratch.names(number));
    netns::ensure(&with_netns.netns).expect("made");
    cgroup::ensure(&with_group.cgroup, &LIMITS).expect("made");
    fs::create_dir_all(&with_dir.run_dir).expect("made");
    netns::ensure(&with_all.netns).expect("made");
    fs::create_dir_all(&with_all.run_dir).expect("made");
    let group = cgroup::ensure(&with_all.cgroup, &LIMITS).expect("made");
    let process = start(&with_all, &group, "/bin/sleep", &["60"]);
    // Another instance's and nobody's things are left alone.
    let theirs = Scratch::new("reclaimother");
    netns::ensure(&theirs.names(1).netns).expect("made");
    fs::create_dir_all(scratch.instance.executions_dir().join("notes")).expect("made");

    let all = [&with_netns, &with_group, &with_dir, &with_all];
    let found = reclaim::list(&scratch.instance).expect("listed");
    assert_eq!(found.into_iter().collect::<Vec<_>>(), all.map(|names| names.execution));
    for names in all {
        assert!(reclaim::is_there(names).expect("looked"), "{names:?}");
        reclaim::remove(names).expect("removed");
        reclaim::remove(names).expect("removed again");
        assert!(!reclaim::is_there(names).expect("looked"), "{names:?}");
    }
    assert_eq!(VmmProcess::of_pid(process.pid()).expect("looked"), None, "its process is ended");
    assert!(reclaim::list(&scratch.instance).expect("listed").is_empty());
    assert!(reclaim::is_there(&theirs.names(1)).expect("looked"));
    assert!(scratch.instance.executions_dir().join("notes").exists());
}
