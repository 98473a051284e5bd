//! Which synthetic address stands for which name, for the life of a lineage.
//!
//! ```text
//! 198.18.0.1 api.example.com
//! 198.18.0.2 example.org
//! ```
//! One line per name in `dns.map` of the execution's directory, which the agent copies with snapshots and
//! forks. A line is written before its address is given out; addresses only grow and are never given to
//! another name. The write goes to the kernel, not to the disk: the file matters after the death of this
//! process, and a host that loses power loses the guests that knew the addresses too.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::net::Ipv4Addr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::egress::Host;

/// Names one execution may look up, those of its ancestors included.
pub const MAX_NAMES: usize = 4096;
/// 198.18.0.0/15: reserved for benchmarks, so it is nobody's real address.
const FIRST: u32 = u32::from_be_bytes([198, 18, 0, 0]);
const LAST: u32 = u32::from_be_bytes([198, 19, 255, 255]);
const MAX_FILE_BYTES: u64 = (MAX_NAMES * 280) as u64;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("reading dns.map")]
    Read(#[source] io::Error),
    #[error("appending to dns.map")]
    Append(#[source] io::Error),
    #[error("line {line} of dns.map is not an address and a name")]
    Malformed { line: usize },
    #[error("line {line} of dns.map repeats a name or goes back in addresses")]
    Order { line: usize },
    #[error("an execution may look up {MAX_NAMES} names")]
    Full,
}

/// Whether an address is one that this map may have given out.
pub fn is_synthetic(address: Ipv4Addr) -> bool {
    (FIRST..=LAST).contains(&address.to_bits())
}

/// The names of one execution.
#[derive(Debug)]
pub struct DnsMap {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    file: File,
    /// Length of the whole lines; what stands behind them is torn.
    bytes: u64,
    last: u32,
    addresses: HashMap<Host, Ipv4Addr>,
    names: HashMap<Ipv4Addr, Host>,
}

impl DnsMap {
    /// Loads what the file holds. A torn last line was never answered and is cut; anything else that does not
    /// read is an error, since guessing could give a name another's address.
    pub fn load(mut file: File) -> Result<Self, Error> {
        let mut text = Vec::new();
        file.seek(SeekFrom::Start(0)).map_err(Error::Read)?;
        (&file).take(MAX_FILE_BYTES).read_to_end(&mut text).map_err(Error::Read)?;
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        file.set_len(whole as u64).map_err(Error::Read)?;
        let mut state = State {
            file,
            bytes: whole as u64,
            last: FIRST,
            addresses: HashMap::new(),
            names: HashMap::new(),
        };
        for (index, line) in text[..whole].split(|byte| *byte == b'\n').enumerate() {
            if !line.is_empty() {
                state.load_line(line, index + 1)?;
            }
        }
        Ok(Self { state: Mutex::new(state) })
    }

    /// The address of a name, giving it the next free one if it has none yet.
    pub fn ensure_address(&self, name: &Host) -> Result<Ipv4Addr, Error> {
        self.lock().ensure_address(name)
    }

    /// The name an address was given for.
    pub fn find_name(&self, address: Ipv4Addr) -> Option<Host> {
        self.lock().names.get(&address).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is made complete before the next can fail, so a panic elsewhere leaves it whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn load_line(&mut self, line: &[u8], number: usize) -> Result<(), Error> {
        let malformed = Error::Malformed { line: number };
        let Some((address, name)) = std::str::from_utf8(line).ok().and_then(|line| line.split_once(' '))
        else {
            return Err(malformed);
        };
        let (Ok(address), Ok(name)) = (address.parse::<Ipv4Addr>(), Host::parse(name)) else {
            return Err(malformed);
        };
        let grows = address.to_bits() > self.last && address.to_bits() <= LAST;
        if !grows || self.addresses.contains_key(&name) {
            return Err(Error::Order { line: number });
        }
        if self.addresses.len() == MAX_NAMES {
            return Err(Error::Full);
        }
        self.insert(name, address);
        Ok(())
    }

    fn ensure_address(&mut self, name: &Host) -> Result<Ipv4Addr, Error> {
        if let Some(address) = self.addresses.get(name) {
            return Ok(*address);
        }
        if self.addresses.len() >= MAX_NAMES || self.last >= LAST {
            return Err(Error::Full);
        }
        let address = Ipv4Addr::from_bits(self.last + 1);
        let line = format!("{address} {name}\n");
        if let Err(error) = self.file.write_all(line.as_bytes()) {
            // Cut the part that was written: the next name must begin a line of its own.
            self.file.set_len(self.bytes).map_err(Error::Append)?;
            return Err(Error::Append(error));
        }
        self.bytes += line.len() as u64;
        self.insert(name.clone(), address);
        Ok(address)
    }

    fn insert(&mut self, name: Host, address: Ipv4Addr) {
        self.last = address.to_bits();
        self.addresses.insert(name.clone(), address);
        self.names.insert(address, name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs::OpenOptions;
    use std::path::Path;

    fn open(path: &Path) -> File {
        OpenOptions::new().read(true).append(true).create(true).open(path).unwrap()
    }

    fn host(name: &str) -> Host {
        Host::parse(name).unwrap()
    }

    #[test]
    fn an_address_is_written_before_it_is_given() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("dns.map");
        let map = DnsMap::load(open(&path)).unwrap();
        assert_eq!(map.ensure_address(&host("a.example")).unwrap(), Ipv4Addr::new(198, 18, 0, 1));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "198.18.0.1 a.example\n");
        assert_eq!(map.ensure_address(&host("b.example")).unwrap(), Ipv4Addr::new(198, 18, 0, 2));
        assert_eq!(map.ensure_address(&host("a.example")).unwrap(), Ipv4Addr::new(198, 18, 0, 1));
        assert_eq!(map.find_name(Ipv4Addr::new(198, 18, 0, 2)), Some(host("b.example")));
        assert_eq!(map.find_name(Ipv4Addr::new(198, 18, 0, 3)), None);
    }

    #[test]
    fn a_full_map_refuses_new_names_and_keeps_old_ones() {
        let directory = tempfile::tempdir().unwrap();
        let map = DnsMap::load(open(&directory.path().join("dns.map"))).unwrap();
        for index in 0..MAX_NAMES {
            map.ensure_address(&host(&format!("n{index}.example"))).unwrap();
        }
        assert!(matches!(map.ensure_address(&host("one.more.example")), Err(Error::Full)));
        assert_eq!(map.ensure_address(&host("n0.example")).unwrap(), Ipv4Addr::new(198, 18, 0, 1));
    }

    #[test]
    fn a_map_that_does_not_read_is_refused() {
        for (text, line) in [
            ("198.18.0.1 a.example\nrubbish\n198.18.0.3 b.example\n", 2),
            ("198.18.0.2 a.example\n198.18.0.1 b.example\n", 2),
            ("198.18.0.1 a.example\n198.18.0.2 a.example\n", 2),
            ("10.0.0.1 a.example\n", 1),
            ("198.20.0.0 a.example\n", 1),
        ] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("dns.map");
            std::fs::write(&path, text).unwrap();
            match DnsMap::load(open(&path)) {
                Err(Error::Malformed { line: at } | Error::Order { line: at }) => {
                    assert_eq!(at, line, "{text}")
                }
                other => panic!("{text}: {other:?}"),
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Process deaths at any byte in between: a name keeps the address it was ever given.
        #[test]
        fn addresses_survive_restarts_and_torn_writes(
            runs in prop::collection::vec(prop::collection::vec(0u8..30, 0..12), 1..6),
            torn in prop::collection::vec("[a-z0-9. ]{0,20}", 6),
        ) {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("dns.map");
            let mut model: HashMap<Host, Ipv4Addr> = HashMap::new();
            for (names, tail) in runs.iter().zip(torn) {
                let map = DnsMap::load(open(&path)).unwrap();
                for name in names {
                    let name = host(&format!("n{name}.example"));
                    let address = map.ensure_address(&name).unwrap();
                    let others = model.iter().filter(|(other, _)| **other != name);
                    prop_assert!(others.clone().all(|(_, taken)| *taken != address));
                    prop_assert_eq!(*model.entry(name.clone()).or_insert(address), address);
                    prop_assert_eq!(map.find_name(address), Some(name));
                }
                open(&path).write_all(tail.as_bytes()).unwrap();
            }
        }
    }
}
