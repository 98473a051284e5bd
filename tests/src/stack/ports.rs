//! Ports on the host's loopback for one stack, which nobody else takes while it lives.
//!
//! Asking the kernel for a free one would not do: a daemon that is restarted finds its port given to an outgoing
//! connection meanwhile, or to another stack that asked at the same moment. These lie below the ports the kernel gives
//! away, in blocks; who binds a block's name in the abstract namespace has it, and the kernel takes it back.

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::Arc;

const FIRST: u16 = 20_000;
const BLOCK: u16 = 10;
const BLOCKS: u16 = 1_000;

#[derive(Debug, Clone)]
pub struct Ports {
    pub api: u16,
    pub fleet: u16,
    pub ensure: u16,
    pub gateway: u16,
    pub preview: u16,
    pub scheduler_health: u16,
    pub agent_health: u16,
    pub egress_health: u16,
    pub edge_health: u16,
    _claim: Arc<UnixListener>,
}

impl Ports {
    pub fn choose() -> io::Result<Self> {
        // Another place to begin for each process, so that a port is not used again at once.
        let begin = std::process::id() % u32::from(BLOCKS);
        for turn in 0..u32::from(BLOCKS) {
            let block = ((begin + turn) % u32::from(BLOCKS)) as u16;
            if let Some(ports) = Self::claim(block)? {
                return Ok(ports);
            }
        }
        Err(io::Error::other("every block of ports for stacks is taken"))
    }

    fn claim(block: u16) -> io::Result<Option<Self>> {
        let name = SocketAddr::from_abstract_name(format!("roost-stack-ports-{block}"))?;
        let claim = match UnixListener::bind_addr(&name) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Ok(None),
            claim => Arc::new(claim?),
        };
        let first = FIRST + block * BLOCK;
        let is_free = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
        if !(first..first + BLOCK).all(is_free) {
            return Ok(None);
        }
        Ok(Some(Self {
            api: first,
            fleet: first + 1,
            ensure: first + 2,
            gateway: first + 3,
            preview: first + 4,
            scheduler_health: first + 5,
            agent_health: first + 6,
            egress_health: first + 7,
            edge_health: first + 8,
            _claim: claim,
        }))
    }

    pub fn health(&self, process: &str) -> u16 {
        match process {
            "scheduler" => self.scheduler_health,
            "agent" => self.agent_health,
            "egress" => self.egress_health,
            _ => self.edge_health,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_gets_a_port_that_another_stack_has() {
        let stacks: Vec<_> = (0..20).map(|_| Ports::choose().unwrap()).collect();
        let mut apis: Vec<_> = stacks.iter().map(|ports| ports.api).collect();
        apis.sort_unstable();
        assert!(apis.windows(2).all(|pair| pair[1] - pair[0] >= BLOCK), "{apis:?}");
        assert!(apis.iter().all(|port| (FIRST..FIRST + BLOCK * BLOCKS).contains(port)));
    }

    #[test]
    fn a_block_whose_port_somebody_else_has_is_passed_over_and_comes_back() {
        // The first that no stack gets: other tests run beside this one.
        let block = BLOCKS;
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, FIRST + block * BLOCK + 4)).unwrap();
        assert!(Ports::claim(block).unwrap().is_none());
        drop(taken);
        assert!(Ports::claim(block).unwrap().is_some());
    }
}
