//! Which host a new sandbox should be tried on, and in which order. Pure: the reservation itself decides.

use crate::store::host::Host;

/// What a sandbox takes of a host.
#[derive(Debug, Clone, Copy)]
pub struct Need<'a> {
    pub template: &'a str,
    pub memory_mib: u64,
    pub disk_mib: u64,
}

/// Hosts that have the template and seem to have room, the emptiest first; equals in the order of their ids.
pub fn choose_hosts(hosts: &[Host], need: Need<'_>) -> Vec<String> {
    let mut fitting: Vec<&Host> = hosts.iter().filter(|host| fits(host, need)).collect();
    fitting.sort_by(|one, other| {
        let free = |host: &Host| host.memory_mib.saturating_sub(host.memory_reserved_mib);
        free(other).cmp(&free(one)).then_with(|| one.id.cmp(&other.id))
    });
    fitting.into_iter().map(|host| host.id.clone()).collect()
}

fn fits(host: &Host, need: Need<'_>) -> bool {
    host.templates.iter().any(|template| template == need.template)
        && host.memory_reserved_mib + need.memory_mib <= host.memory_mib
        && host.disk_reserved_mib + need.disk_mib <= host.disk_mib
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(id: &str, memory_mib: u64, reserved: u64) -> Host {
        Host {
            id: id.into(),
            state: "active".into(),
            version: String::new(),
            ensure_address: String::new(),
            gateway_address: String::new(),
            preview_address: String::new(),
            memory_mib,
            disk_mib: 1000,
            vcpus: 4,
            templates: vec!["miosa-sandbox".into()],
            vmm: "qemu-tcg".into(),
            memory_reserved_mib: reserved,
            disk_reserved_mib: 0,
            joined_us: 0,
            seen_us: 0,
            clock_skew_us: 0,
        }
    }

    #[test]
    fn the_emptiest_host_that_fits_comes_first() {
        let hosts = [host("a", 1000, 600), host("b", 1000, 100), host("c", 1000, 100), host("d", 1000, 990)];
        let need = Need { template: "miosa-sandbox", memory_mib: 300, disk_mib: 1000 };
        assert_eq!(choose_hosts(&hosts, need), ["b", "c", "a"]);
        assert!(choose_hosts(&hosts, Need { template: "other", ..need }).is_empty());
        assert!(choose_hosts(&hosts, Need { disk_mib: 1001, ..need }).is_empty());
    }
}
