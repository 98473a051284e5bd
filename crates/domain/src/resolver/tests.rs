//! A11, A12, A13: blank ids, all 64 subsets of the six scopes, the switch, and no fall-through on a wrong host.

use super::*;
use crate::Ulid;

const NOW_US: i64 = 1_000;

fn sandbox() -> SandboxId {
    SandboxId::from_ulid(Ulid(7))
}

fn external(text: &str) -> ExternalId {
    ExternalId::parse(text).unwrap()
}

fn asker() -> Asker {
    Asker {
        sandbox: sandbox(),
        owner_user_id: Some("usr_1".to_owned()),
        external_user: Some(external("user_42")),
        external_workspace: Some(external("clinic1")),
        workspace_id: "ws_1".to_owned(),
    }
}

/// A secret that the asker matches in exactly this step.
fn candidate(step: Step) -> Candidate {
    let owner = match step {
        // Bound directly, though it belongs to a workspace of somebody else.
        Step::Binding => Owner::Workspace("ws_other".to_owned()),
        Step::User => Owner::User("usr_1".to_owned()),
        Step::ExternalUser => Owner::ExternalUser(external("user_42")),
        Step::ExternalWorkspace => Owner::ExternalWorkspace(external("clinic1")),
        Step::Workspace => Owner::Workspace("ws_1".to_owned()),
        Step::Tenant => Owner::Tenant,
    };
    Candidate {
        secret: SecretId::from_ulid(Ulid(step as u128)),
        owner,
        bound_to: if step == Step::Binding { vec![sandbox()] } else { vec![] },
        enabled: true,
        expires_us: None,
        allowed_hosts: vec![Pattern::parse("api.openai.com").unwrap()],
    }
}

fn found(asker: &Asker, candidates: &[Candidate], switch: EndUserCredentials) -> Option<Step> {
    resolve(asker, candidates, switch, NOW_US).found.map(|(step, _)| step)
}

fn subset(bits: usize) -> Vec<Candidate> {
    // Lowest first: the order of the candidates must not matter.
    let present = |step: &&Step| bits & (1 << (**step as usize)) != 0;
    Step::ALL.iter().rev().filter(present).map(|step| candidate(*step)).collect()
}

#[test]
fn a12_the_highest_of_every_subset_wins() {
    for bits in 0..64 {
        let candidates = subset(bits);
        let expected = Step::ALL.iter().copied().find(|step| bits & (1 << (*step as usize)) != 0);
        assert_eq!(found(&asker(), &candidates, EndUserCredentials::Allowed), expected, "{bits:06b}");
        let resolution = resolve(&asker(), &candidates, EndUserCredentials::Allowed, NOW_US);
        let steps_before = expected.map_or(6, |step| step as usize);
        assert_eq!(resolution.skipped.len(), steps_before);
        assert!(resolution.skipped.iter().all(|(_, reason)| *reason == Skipped::Absent));
    }
}

#[test]
fn dec_10_without_an_owner_user_five_steps_are_left() {
    let asker = Asker { owner_user_id: None, ..asker() };
    for bits in 0..64 {
        let expected =
            Step::ALL.iter().copied().find(|step| *step != Step::User && bits & (1 << (*step as usize)) != 0);
        assert_eq!(found(&asker, &subset(bits), EndUserCredentials::Allowed), expected, "{bits:06b}");
    }
}

#[test]
fn a11_blank_ids_match_nothing_and_case_matters() {
    let bare = Asker {
        owner_user_id: Some(String::new()),
        external_user: None,
        external_workspace: None,
        workspace_id: String::new(),
        ..asker()
    };
    let candidates: Vec<_> = Step::ALL[1..].iter().map(|step| candidate(*step)).collect();
    let mut blanks = candidates.clone();
    blanks.push(Candidate { owner: Owner::User(String::new()), ..candidate(Step::User) });
    blanks.push(Candidate { owner: Owner::Workspace(String::new()), ..candidate(Step::Workspace) });
    let resolution = resolve(&bare, &blanks, EndUserCredentials::Allowed, NOW_US);
    assert_eq!(resolution.found.map(|(step, _)| step), Some(Step::Tenant));
    let reasons: Vec<_> = resolution.skipped.iter().map(|(_, reason)| *reason).collect();
    assert_eq!(reasons, [Skipped::Absent, Skipped::Blank, Skipped::Blank, Skipped::Blank, Skipped::Blank]);

    let shouting = Asker { external_user: Some(external("USER_42")), external_workspace: None, ..asker() };
    assert_eq!(found(&shouting, &subset(1 << 2 | 1 << 3), EndUserCredentials::Allowed), None);
}

#[test]
fn a13_the_switch_takes_out_end_users_secrets_only() {
    for bits in 0..64 {
        let expected = Step::ALL
            .iter()
            .copied()
            .find(|step| *step != Step::ExternalUser && bits & (1 << (*step as usize)) != 0);
        assert_eq!(found(&asker(), &subset(bits), EndUserCredentials::Off), expected, "{bits:06b}");
    }
    // Also when it is bound to the sandbox directly.
    let bound = Candidate { bound_to: vec![sandbox()], ..candidate(Step::ExternalUser) };
    assert_eq!(
        found(&asker(), std::slice::from_ref(&bound), EndUserCredentials::Allowed),
        Some(Step::Binding)
    );
    assert_eq!(found(&asker(), std::slice::from_ref(&bound), EndUserCredentials::Off), None);
}

#[test]
fn the_strict_switch_leaves_external_workspaces_and_the_tenant() {
    for bits in 0..64 {
        let expected = [Step::ExternalWorkspace, Step::Tenant]
            .into_iter()
            .find(|step| bits & (1 << (*step as usize)) != 0);
        assert_eq!(found(&asker(), &subset(bits), EndUserCredentials::Strict), expected, "{bits:06b}");
    }
}

#[test]
fn disabled_and_expired_secrets_are_passed_over() {
    let mut candidates = subset(0b11_0110);
    candidates[3].enabled = false;
    candidates[2].expires_us = Some(NOW_US);
    let resolution = resolve(&asker(), &candidates, EndUserCredentials::Allowed, NOW_US);
    assert_eq!(resolution.found.map(|(step, _)| step), Some(Step::Workspace));
    assert_eq!(
        resolution.skipped,
        [
            (Step::Binding, Skipped::Absent),
            (Step::User, Skipped::Disabled),
            (Step::ExternalUser, Skipped::Expired),
            (Step::ExternalWorkspace, Skipped::Absent),
        ]
    );
    candidates[2].expires_us = Some(NOW_US + 1);
    assert_eq!(found(&asker(), &candidates, EndUserCredentials::Allowed), Some(Step::ExternalUser));
}

#[test]
fn a_wrong_host_ends_it() {
    let host = |text: &str| Host::parse(text).unwrap();
    let mut candidates = subset(0b11_1111);
    for candidate in candidates.iter_mut().filter(|candidate| candidate.owner.step() != Step::Tenant) {
        candidate.allowed_hosts = vec![Pattern::parse("other.example").unwrap()];
    }
    // The tenant's secret would fit the host; the walk does not get that far.
    let (step, chosen) = resolve(&asker(), &candidates, EndUserCredentials::Allowed, NOW_US).found.unwrap();
    assert_eq!(step, Step::Binding);
    assert_eq!(admit(&chosen.allowed_hosts, &host("api.openai.com")), Admission::WrongHost);
    assert_eq!(admit(&chosen.allowed_hosts, &host("other.example")), Admission::Admitted);
    assert_eq!(admit(&[], &host("api.openai.com")), Admission::Unbound);
}

#[test]
fn a_binding_to_another_sandbox_is_none() {
    let bound = Candidate { bound_to: vec![SandboxId::from_ulid(Ulid(8))], ..candidate(Step::Binding) };
    assert_eq!(found(&asker(), &[bound], EndUserCredentials::Allowed), None);
}
