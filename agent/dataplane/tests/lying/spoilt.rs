//! An honest guest whose bytes are changed on the way to the gateway.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::agent::Reply;
use crate::support::attached::{Attached, LONG};
use crate::support::guest::FakeGuest;
use crate::{GROWTH_MAX_KIB, Neighbour, call_all, exec};

/// A small generator of its own, so that a seed means the same tomorrow.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }

    /// Flips, drops, doubles, inserts or cuts something, in one read of three.
    fn spoil(&mut self, bytes: &mut Vec<u8>) -> bool {
        if bytes.is_empty() || self.below(3) > 0 {
            return true;
        }
        let at = self.below(bytes.len());
        match self.below(6) {
            0 => bytes[at] ^= 1 << self.below(8),
            1 => bytes[at] = self.below(256) as u8,
            2 => drop(bytes.remove(at)),
            3 => {
                let more: Vec<u8> = (0..1 + self.below(40)).map(|_| self.below(256) as u8).collect();
                drop(bytes.splice(at..at, more));
            }
            4 => bytes.extend_from_within(at..),
            _ => {
                bytes.truncate(at);
                return false;
            }
        }
        true
    }
}

/// Between the gateway and an honest guest: what the guest says is spoilt once `spoiling` is set.
async fn mangle(gateway: TcpStream, honest: std::net::SocketAddr, seed: u64, spoiling: Arc<AtomicBool>) {
    let guest = TcpStream::connect(honest).await.unwrap();
    let (mut from_gateway, mut to_gateway) = gateway.into_split();
    let (mut from_guest, mut to_guest) = guest.into_split();
    let forth = async { drop(tokio::io::copy(&mut from_gateway, &mut to_guest).await) };
    let back = async {
        let mut chance = Chance(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let mut buffer = vec![0; 16 << 10];
        while let Ok(count @ 1..) = from_guest.read(&mut buffer).await {
            let mut bytes = buffer[..count].to_vec();
            let goes_on = !spoiling.load(Ordering::Relaxed) || chance.spoil(&mut bytes);
            if to_gateway.write_all(&bytes).await.is_err() || !goes_on {
                return;
            }
        }
    };
    tokio::select! {
        () = forth => {}
        () = back => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_change_of_a_guest_s_bytes_harms_the_gateway() {
    let seeds =
        std::env::var("ROOST_LYING_SEEDS").map_or(60, |text| text.parse().expect("a number of seeds"));
    let mut attached = Attached::new().await;
    let neighbour = Neighbour::new(&mut attached).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let honest = listener.local_addr().unwrap();
    FakeGuest::default().serve(listener);
    let (seed, spoiling) = (Arc::new(AtomicU64::new(1)), Arc::new(AtomicBool::new(false)));
    let cut = Arc::new(tokio::sync::Notify::new());
    let (theirs, flag, cutting) = (seed.clone(), spoiling.clone(), cut.clone());
    attached.serve_raw(move |stream| {
        let (seed, flag, cut) = (theirs.load(Ordering::Relaxed), flag.clone(), cutting.clone());
        async move {
            tokio::select! {
                () = mangle(stream, honest, seed, flag) => {}
                () = cut.notified() => {}
            }
        }
    });
    assert!(matches!(attached.claim().await, Reply::Claimed(_)));
    let mut gateway = attached.gateway().await;
    let before = (attached.resident_kib(), attached.descriptors());
    spoiling.store(true, Ordering::Relaxed);
    let (mut well, mut ill, mut hung) = (0, 0, 0);
    for number in 1..=seeds {
        seed.store(number, Ordering::Relaxed);
        for result in call_all(&mut gateway, Duration::from_millis(500)).await {
            match result {
                Some(Ok(())) => well += 1,
                Some(Err(_)) => ill += 1,
                None => hung += 1,
            }
        }
        // Whatever state the connection is in, the next seed begins with a new one.
        cut.notify_waiters();
    }
    assert!(
        well > 0 && ill > 0,
        "{well} well, {ill} ill, {hung} without an answer: nothing was spoilt, or all"
    );
    neighbour.is_served(&mut attached).await;
    // And the guest itself, once it tells the truth again.
    spoiling.store(false, Ordering::Relaxed);
    cut.notify_waiters();
    let deadline = Instant::now() + LONG;
    while exec(&mut gateway).await != Ok(3) {
        assert!(Instant::now() < deadline, "an honest guest is not believed again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let grown = attached.resident_kib().saturating_sub(before.0);
    assert!(grown < GROWTH_MAX_KIB, "{grown} KiB after {seeds} seeds");
    let more = attached.descriptors().saturating_sub(before.1);
    assert!(more <= 32, "{more} more descriptors");
}
