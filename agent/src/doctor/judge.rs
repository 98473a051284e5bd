//! Turns facts about a host into findings. Pure.

use roost_proto::local::Finding;

use super::facts::{DataplaneFact, Facts};
use crate::config::Config;

/// Memory below which not even one small sandbox fits.
const MEMORY_MIN_MIB: u64 = 512;
const DISK_MIN_MIB: u64 = 2048;

struct Findings(Vec<Finding>);

impl Findings {
    fn push(&mut self, level: &str, subject: &str, found: impl Into<String>, remedy: impl Into<String>) {
        self.0.push(Finding {
            subject: subject.to_owned(),
            level: level.to_owned(),
            found: found.into(),
            remedy: remedy.into(),
        });
    }

    /// One need: present, or missing with the way to get it.
    fn need(&mut self, subject: &str, met: bool, found: impl Into<String>, remedy: impl Into<String>) {
        match met {
            true => self.push("ok", subject, found, ""),
            false => self.push("missing", subject, found, remedy),
        }
    }
}

pub(super) fn judge(config: &Config, facts: &Facts) -> Vec<Finding> {
    let mut findings = Findings(Vec::new());
    privileges(&mut findings, facts);
    tools(&mut findings, facts);
    kernel(&mut findings, facts);
    images(&mut findings, config, facts);
    vmm(&mut findings, facts);
    budget(&mut findings, facts);
    room(&mut findings, config, facts);
    dataplane(&mut findings, config, facts);
    exceptions(&mut findings, config);
    findings.0
}

fn privileges(findings: &mut Findings, facts: &Facts) {
    findings.need("root", facts.is_root, format!("uid {}", facts.uid), "run the agent as root");
    findings.need(
        "mount namespace",
        facts.shares_mount_namespace,
        if facts.shares_mount_namespace { "that of the host" } else { "a private one" },
        "namespaces made here would be unusable outside: start the agent without PrivateTmp, ProtectSystem and the like",
    );
}

fn tools(findings: &mut Findings, facts: &Facts) {
    for tool in &facts.tools {
        let found = tool.path.as_ref().map_or("not found".to_owned(), |path| path.display().to_string());
        findings.need(tool.name, tool.path.is_some(), found, format!("apt-get install {}", tool.package));
    }
}

fn kernel(findings: &mut Findings, facts: &Facts) {
    findings.need(
        "/dev/net/tun",
        facts.has_tun,
        if facts.has_tun { "present" } else { "not there" },
        "modprobe tun",
    );
    match &facts.seal {
        Ok(()) => findings.push("ok", "sealed network", "a namespace with TPROXY rules was made and removed", ""),
        Err(reason) => findings.push(
            "missing",
            "sealed network",
            reason.clone(),
            "the kernel needs CONFIG_NET_NS, CONFIG_NF_TABLES and CONFIG_NFT_TPROXY: modprobe nf_tables nft_tproxy",
        ),
    }
    match &facts.cgroups {
        Ok(kind) => findings.push("ok", "cgroups", kind.clone(), ""),
        Err(reason) => findings.push(
            "missing",
            "cgroups",
            reason.clone(),
            "mount cgroup v2 at /sys/fs/cgroup, or the v1 controllers cpu, cpuacct, memory and pids below it",
        ),
    }
}

fn images(findings: &mut Findings, config: &Config, facts: &Facts) {
    let dir = config.image_dir.display();
    match &facts.templates {
        Ok(templates) if !templates.is_empty() => findings.push("ok", "templates", templates.join(", "), ""),
        Ok(_) => findings.push(
            "missing",
            "templates",
            format!("none in {dir}"),
            format!("build one: images/build miosa-sandbox {dir}"),
        ),
        Err(reason) => findings.push(
            "missing",
            "templates",
            reason.clone(),
            format!("build one: images/build miosa-sandbox {dir}"),
        ),
    }
}

fn vmm(findings: &mut Findings, facts: &Facts) {
    match &facts.vmm {
        Ok(choice) => {
            findings.push("ok", "vmm", choice.chosen.clone(), "");
            for reason in &choice.reasons {
                findings.push("note", "vmm choice", reason.clone(), "");
            }
        }
        Err(reason) => findings.push("missing", "vmm", reason.clone(), "apt-get install qemu-system-x86"),
    }
}

fn budget(findings: &mut Findings, facts: &Facts) {
    match &facts.budget {
        Ok(budget) => {
            findings.need(
                "memory budget",
                budget.memory_mib >= MEMORY_MIN_MIB,
                format!("{} MiB for sandboxes, {} CPUs", budget.memory_mib, budget.vcpus),
                format!("at least {MEMORY_MIN_MIB} MiB: a larger machine, or [capacity] memory_mib"),
            );
            findings.need(
                "disk budget",
                budget.disk_mib >= DISK_MIN_MIB,
                format!("{} MiB for sandboxes", budget.disk_mib),
                format!("at least {DISK_MIN_MIB} MiB: a larger state_dir, or [capacity] disk_mib"),
            );
        }
        Err(reason) => {
            findings.push("missing", "budget", reason.clone(), "see [capacity] in the configuration")
        }
    }
}

fn room(findings: &mut Findings, config: &Config, facts: &Facts) {
    let found = match &facts.room {
        Ok(free_mib) => format!("{free_mib} MiB free, the last {} kept", config.capacity.disk_reserve_mib),
        Err(reason) => reason.clone(),
    };
    let remedy = "free some of state_dir's file system, or lower [capacity] disk_reserve_mib";
    findings.need("disk room", facts.room.is_ok(), found, remedy);
}

fn dataplane(findings: &mut Findings, config: &Config, facts: &Facts) {
    for (name, socket, fact) in
        [("egress", config.egress_socket(), facts.egress), ("edge", config.edge_socket(), facts.edge)]
    {
        let (met, found) = match fact {
            DataplaneFact::Connected => (true, "connected".to_owned()),
            DataplaneFact::Listening => (true, format!("listens at {}", socket.display())),
            DataplaneFact::Absent => (false, format!("nobody listens at {}", socket.display())),
        };
        findings.need(name, met, found, format!("systemctl start roost-{name}"));
    }
}

fn exceptions(findings: &mut Findings, config: &Config) {
    if config.egress.floor_exceptions.is_empty() {
        findings.push("ok", "deny floor", "no exceptions", "");
    }
    for exception in &config.egress.floor_exceptions {
        let found =
            format!("guests may reach {} port {} in {}", exception.name, exception.port, exception.cidr);
        findings.push(
            "warning",
            "deny floor",
            found,
            "remove it from [[egress.floor_exceptions]] if it is not meant",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::facts::{Choice, Tool};
    use super::*;
    use crate::capacity::Budget;

    fn healthy() -> Facts {
        Facts {
            uid: 0,
            is_root: true,
            shares_mount_namespace: true,
            tools: vec![Tool { name: "nft", package: "nftables", path: Some("/usr/sbin/nft".into()) }],
            has_tun: true,
            seal: Ok(()),
            cgroups: Ok("v2".into()),
            templates: Ok(vec!["miosa-sandbox".into()]),
            vmm: Ok(Choice { chosen: "qemu-tcg".into(), reasons: vec!["no vmx or svm".into()] }),
            budget: Ok(Budget { memory_mib: 8192, disk_mib: 10_000, vcpus: 2 }),
            room: Ok(5000),
            egress: DataplaneFact::Connected,
            edge: DataplaneFact::Listening,
        }
    }

    fn missing(facts: &Facts) -> Vec<String> {
        let findings = judge(&Config::default(), facts);
        findings
            .into_iter()
            .filter(|finding| finding.level == "missing")
            .map(|finding| finding.subject)
            .collect()
    }

    #[test]
    fn a_healthy_host_misses_nothing() {
        assert_eq!(missing(&healthy()), Vec::<String>::new());
    }

    #[test]
    fn every_need_can_be_missing_and_says_how_to_get_it() {
        type Breakage = fn(&mut Facts);
        let broken: [(&str, Breakage); 13] = [
            ("root", |facts| facts.is_root = false),
            ("mount namespace", |facts| facts.shares_mount_namespace = false),
            ("nft", |facts| facts.tools[0].path = None),
            ("/dev/net/tun", |facts| facts.has_tun = false),
            ("sealed network", |facts| facts.seal = Err("no tproxy".into())),
            ("cgroups", |facts| facts.cgroups = Err("none".into())),
            ("templates", |facts| facts.templates = Ok(Vec::new())),
            ("vmm", |facts| facts.vmm = Err("no qemu".into())),
            ("memory budget", |facts| facts.budget.as_mut().unwrap().memory_mib = 1),
            ("disk budget", |facts| facts.budget.as_mut().unwrap().disk_mib = 1),
            ("disk room", |facts| facts.room = Err("nearly full".into())),
            ("egress", |facts| facts.egress = DataplaneFact::Absent),
            ("edge", |facts| facts.edge = DataplaneFact::Absent),
        ];
        for (subject, breakage) in broken {
            let mut facts = healthy();
            breakage(&mut facts);
            assert_eq!(missing(&facts), [subject]);
            let findings = judge(&Config::default(), &facts);
            let finding = findings.iter().find(|finding| finding.level == "missing").unwrap();
            assert!(!finding.remedy.is_empty(), "{subject} has no remedy");
        }
    }

    #[test]
    fn every_exception_to_the_floor_is_named() {
        let mut config = Config::default();
        config.egress.floor_exceptions.push(crate::config::FloorException {
            name: "registry.lan".into(),
            port: 443,
            cidr: "10.1.2.0/24".into(),
        });
        let findings = judge(&config, &healthy());
        let found = findings.iter().find(|finding| finding.subject == "deny floor").unwrap();
        assert_eq!(found.level, "warning");
        assert!(found.found.contains("registry.lan port 443 in 10.1.2.0/24"));
    }
}
