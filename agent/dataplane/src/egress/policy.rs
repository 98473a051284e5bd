//! Which names, addresses and ports a guest may reach: pure decisions over a policy that is swapped whole.
//!
//! The deny floor (`roost_domain::address`) lies below every policy: names are checked here, addresses where
//! they are dialled, and no rule lifts it. Until tenants' policies arrive there is one, the operator's; the
//! default permits everything but the ports of outgoing mail.

use std::net::Ipv4Addr;

use roost_domain::address::Floor;
use roost_domain::audit::reason;
use roost_domain::host_name::Pattern;
use roost_domain::sabotage::Defence;
use serde::Deserialize;

use super::Host;
use super::audit::Outcome;

/// Outgoing mail: what a stolen machine is used for first.
const MAIL_PORTS: [u16; 3] = [25, 465, 587];
/// Top-level names no public resolver answers.
const NEVER_PUBLIC: [&str; 4] = ["arpa", "invalid", "local", "onion"];

/// What a rule or the default says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    Allow,
    Deny,
}

/// One line of a policy.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    #[serde(default)]
    pub id: Option<String>,
    pub effect: Effect,
    pub host: Pattern,
    /// Every port when empty.
    #[serde(default)]
    pub ports: Vec<u16>,
}

/// What the operator of the host says about all its guests. A matching deny wins over every allow.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    pub default_effect: Effect,
    pub rules: Vec<Rule>,
    /// Whether ports 25, 465 and 587 are open where no rule says so.
    pub mail: bool,
    /// Set from the same settings as the connector's.
    #[serde(skip)]
    pub floor: Floor,
}

impl Default for Policy {
    fn default() -> Self {
        Self { default_effect: Effect::Allow, rules: Vec::new(), mail: false, floor: Floor::default() }
    }
}

/// The answer, with the rule it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    Permit { rule_id: Option<String> },
    Refuse(Refusal),
}

/// Why not, for the audit row and for the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub reason: &'static str,
    pub rule_id: Option<String>,
    pub message: String,
}

impl Refusal {
    /// The end of the call in the audit trail.
    pub fn outcome(self) -> Outcome {
        let outcome = Outcome::rejected(self.reason).with_detail(self.message);
        Outcome { rule_id: self.rule_id, ..outcome }
    }
}

/// Names that exist nowhere a guest could mean: they are not refused, there is no such name.
pub fn never_exists(name: &Host) -> bool {
    let mut labels = name.labels();
    let last = labels.next_back();
    labels.next_back().is_none() || last.is_some_and(|last| NEVER_PUBLIC.contains(&last))
}

impl Policy {
    /// Whether a name is one of a metadata service.
    pub fn is_metadata(&self, name: &Host) -> bool {
        self.floor.check_name(name).is_err()
    }

    /// May the name be looked up: is there a port on which it may be reached?
    pub fn decide_name(&self, name: &Host) -> Decision {
        if let Err(refusal) = self.floor.check_name(name) {
            return refuse(reason::DENIED_ADDRESS, None, format!("{name} is not reachable: {refusal}"));
        }
        let mut matching = self.rules.iter().filter(|rule| rule.host.matches(name));
        if let Some(deny) = matching.clone().find(|rule| rule.effect == Effect::Deny && rule.ports.is_empty())
        {
            return refuse_by_rule(deny, name);
        }
        let allow = matching.find(|rule| rule.effect == Effect::Allow);
        match (allow, self.default_effect) {
            (Some(rule), _) => Decision::Permit { rule_id: rule.id.clone() },
            (None, Effect::Allow) => Decision::Permit { rule_id: None },
            (None, Effect::Deny) => refuse_by_default(name),
        }
    }

    /// May the host, a name or an address, be reached on this port?
    pub fn decide(&self, host: &Host, port: u16) -> Decision {
        if host.is_name()
            && let Err(refusal) = self.floor.check_name(host)
        {
            return refuse(reason::DENIED_ADDRESS, None, format!("{host} is not reachable: {refusal}"));
        }
        let covers =
            |rule: &&Rule| rule.host.matches(host) && (rule.ports.is_empty() || rule.ports.contains(&port));
        let mut matching = self.rules.iter().filter(covers);
        let deny = matching.clone().find(|rule| rule.effect == Effect::Deny);
        if let Some(deny) = deny.filter(|_| !Defence::EgressPolicy.is_off()) {
            return refuse_by_rule(deny, host);
        }
        if let Some(allow) = matching.find(|rule| rule.effect == Effect::Allow) {
            return Decision::Permit { rule_id: allow.id.clone() };
        }
        if MAIL_PORTS.contains(&port) && !self.mail {
            return refuse(reason::POLICY, None, format!("port {port} is closed for outgoing mail"));
        }
        match self.default_effect {
            Effect::Allow => Decision::Permit { rule_id: None },
            Effect::Deny => refuse_by_default(host),
        }
    }
}

fn refuse_by_rule(rule: &Rule, host: &Host) -> Decision {
    let message = match &rule.id {
        Some(id) => format!("the egress policy denies {host} (rule {id})"),
        None => format!("the egress policy denies {host}"),
    };
    refuse(reason::POLICY, rule.id.clone(), message)
}

fn refuse_by_default(host: &Host) -> Decision {
    refuse(reason::POLICY, None, format!("the egress policy has no rule that allows {host}"))
}

fn refuse(reason: &'static str, rule_id: Option<String>, message: String) -> Decision {
    Decision::Refuse(Refusal { reason, rule_id, message })
}

/// The address a guest dialled, as a host.
pub(crate) fn literal(address: Ipv4Addr) -> Host {
    Host::from(std::net::IpAddr::V4(address))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn host(text: &str) -> Host {
        Host::parse(text).unwrap()
    }

    fn rule(effect: Effect, pattern: &str, ports: &[u16]) -> Rule {
        let host = Pattern::parse(pattern).unwrap();
        Rule { id: Some(format!("{effect:?} {pattern}")), effect, host, ports: ports.to_vec() }
    }

    fn permitted(decision: Decision) -> bool {
        matches!(decision, Decision::Permit { .. })
    }

    #[test]
    fn the_default_permits_all_but_mail_and_metadata() {
        let policy = Policy::default();
        assert!(permitted(policy.decide(&host("api.example.com"), 443)));
        assert!(permitted(policy.decide(&host("93.184.216.34"), 5432)));
        for port in MAIL_PORTS {
            assert!(!permitted(policy.decide(&host("mail.example.com"), port)));
        }
        for name in ["metadata.google.internal", "metadata.goog"] {
            assert!(!permitted(policy.decide(&host(name), 80)));
            assert!(!permitted(policy.decide_name(&host(name))));
        }
    }

    #[test]
    fn deny_wins_and_a_denied_port_does_not_hide_the_name() {
        let rules = vec![
            rule(Effect::Allow, "*.example.com", &[]),
            rule(Effect::Deny, "bad.example.com", &[]),
            rule(Effect::Deny, "half.example.com", &[80]),
        ];
        let policy = Policy { default_effect: Effect::Deny, rules, ..Policy::default() };
        assert!(permitted(policy.decide(&host("api.example.com"), 443)));
        assert!(!permitted(policy.decide(&host("bad.example.com"), 443)));
        assert!(!permitted(policy.decide_name(&host("bad.example.com"))));
        assert!(permitted(policy.decide_name(&host("half.example.com"))));
        assert!(permitted(policy.decide(&host("half.example.com"), 443)));
        assert!(!permitted(policy.decide(&host("half.example.com"), 80)));
        assert!(!permitted(policy.decide(&host("other.example"), 443)));
    }

    #[test]
    fn c19_a_wildcard_is_below_its_suffix_and_nothing_else() {
        let rules = vec![rule(Effect::Allow, "*.openai.com", &[])];
        let policy = Policy { default_effect: Effect::Deny, rules, ..Policy::default() };
        for (name, allowed) in [
            ("api.openai.com", true),
            ("a.b.openai.com", true),
            ("API.OpenAI.com.", true),
            ("openai.com", false),
            ("evilopenai.com", false),
            ("openai.com.evil.example", false),
            ("api.openai.com.evil.example", false),
        ] {
            assert_eq!(permitted(policy.decide(&host(name), 443)), allowed, "{name}");
        }
    }

    #[test]
    fn names_nobody_has_do_not_exist() {
        for (name, never) in
            [("printer", true), ("x.local", true), ("1.0.0.127.in-addr.arpa", true), ("a.example", false)]
        {
            assert_eq!(never_exists(&host(name)), never, "{name}");
        }
    }

    proptest! {
        /// A name that may not be looked up may not be reached on any port either.
        #[test]
        fn a_refused_name_is_refused_on_every_port(
            rules in prop::collection::vec((any::<bool>(), 0usize..4, prop::collection::vec(1u16..4, 0..3)), 0..5),
            deny_by_default: bool, name in 0usize..3, port in 1u16..5,
        ) {
            let patterns = ["a.example", "b.example", "*.example.com", "*.b.example"];
            let names = ["a.example", "b.example", "x.example.com"];
            let rules = rules.into_iter().map(|(allow, pattern, ports)| {
                rule(if allow { Effect::Allow } else { Effect::Deny }, patterns[pattern], &ports)
            });
            let default_effect = if deny_by_default { Effect::Deny } else { Effect::Allow };
            let policy = Policy { default_effect, rules: rules.collect(), ..Policy::default() };
            let name = host(names[name]);
            if permitted(policy.decide(&name, port)) {
                prop_assert!(permitted(policy.decide_name(&name)));
            }
        }
    }
}
