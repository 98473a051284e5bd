//! Who may talk to this guest: the token and the epoch, as a pure state machine.
//!
//! ```text
//! Unclaimed --Claim--> Held(applying) --applied--> Held(ready) --Personalise--> Held(applying) --> …
//! ```
//! A change is recorded before it is applied; a repeat of the change that was not fully applied acts again, one
//! that was answers ok without acting. Must not do I/O, so that every rule is tested as a function.

use subtle::ConstantTimeEq;

use crate::sabotage::Defence;

/// Shorter tokens are refused: they can only come from a mistake of the host.
pub const TOKEN_BYTES_MIN: usize = 16;
pub const TOKEN_BYTES_MAX: usize = 512;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("the guest was not claimed yet")]
    NotClaimed,
    #[error("the guest is being personalised")]
    NotReady,
    #[error("the token is not this guest's")]
    WrongToken,
    #[error("the epoch is not greater than the last one")]
    StaleEpoch,
    #[error("the token is too short or too long")]
    BadToken,
}

/// A bearer token; never shown.
#[derive(Clone)]
struct Token(Vec<u8>);

impl Token {
    fn matches(&self, other: &str) -> bool {
        bool::from(self.0.ct_eq(other.as_bytes())) || Defence::GuestToken.is_off()
    }
}

#[derive(Clone)]
struct Holder {
    token: Token,
    /// The token before this one, none after a Claim.
    previous: Option<Token>,
    epoch: u64,
    ready: bool,
}

/// What to do with a Claim or Personalise that is not refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Record it, apply it, then `record_ready`.
    Apply,
    /// It was applied before: answer ok.
    Repeat,
}

#[derive(Clone, Default)]
pub struct ClaimState {
    holder: Option<Holder>,
}

impl std::fmt::Debug for ClaimState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClaimState").field("epoch", &self.epoch()).finish_non_exhaustive()
    }
}

impl ClaimState {
    /// Whether a call with this bearer token may proceed.
    pub fn admit(&self, bearer: Option<&str>) -> Result<(), Error> {
        let holder = self.holder.as_ref().ok_or(Error::NotClaimed)?;
        if !bearer.is_some_and(|bearer| holder.token.matches(bearer)) {
            return Err(Error::WrongToken);
        }
        if holder.ready { Ok(()) } else { Err(Error::NotReady) }
    }

    pub fn epoch(&self) -> u64 {
        self.holder.as_ref().map_or(0, |holder| holder.epoch)
    }

    /// Decides on a Claim and records it when it is to be applied.
    pub fn claim(&mut self, token: &str, epoch: u64) -> Result<Decision, Error> {
        check_token(token)?;
        match &self.holder {
            None if epoch == 0 => return Err(Error::StaleEpoch),
            None => {}
            Some(holder) if !holder.token.matches(token) => return Err(Error::WrongToken),
            Some(holder) if holder.epoch != epoch || holder.previous.is_some() => {
                return Err(Error::StaleEpoch);
            }
            Some(holder) if holder.ready => return Ok(Decision::Repeat),
            Some(_) => return Ok(Decision::Apply),
        }
        self.record(token, None, epoch);
        Ok(Decision::Apply)
    }

    /// Decides on a Personalise and records it when it is to be applied.
    pub fn personalise(&mut self, old: &str, new: &str, epoch: u64) -> Result<Decision, Error> {
        check_token(new)?;
        let holder = self.holder.as_ref().ok_or(Error::NotClaimed)?;
        let repeat = epoch == holder.epoch
            && holder.token.matches(new)
            && holder.previous.as_ref().is_some_and(|previous| previous.matches(old));
        if repeat {
            return Ok(if holder.ready { Decision::Repeat } else { Decision::Apply });
        }
        if !holder.token.matches(old) {
            return Err(Error::WrongToken);
        }
        if epoch <= holder.epoch && !Defence::GuestEpoch.is_off() {
            return Err(Error::StaleEpoch);
        }
        let previous = holder.token.clone();
        self.record(new, Some(previous), epoch);
        Ok(Decision::Apply)
    }

    /// The recorded change was applied in full.
    pub fn record_ready(&mut self) {
        if let Some(holder) = &mut self.holder {
            holder.ready = true;
        }
    }

    fn record(&mut self, token: &str, previous: Option<Token>, epoch: u64) {
        let token = Token(token.as_bytes().to_vec());
        self.holder = Some(Holder { token, previous, epoch, ready: false });
    }
}

fn check_token(token: &str) -> Result<(), Error> {
    if (TOKEN_BYTES_MIN..=TOKEN_BYTES_MAX).contains(&token.len()) { Ok(()) } else { Err(Error::BadToken) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn token(number: u8) -> String {
        format!("token-{number:032}")
    }

    fn claimed() -> ClaimState {
        let mut state = ClaimState::default();
        assert_eq!(state.claim(&token(1), 5), Ok(Decision::Apply));
        state.record_ready();
        state
    }

    #[test]
    fn nothing_is_admitted_before_the_claim_is_applied() {
        let mut state = ClaimState::default();
        assert_eq!(state.admit(Some(&token(1))), Err(Error::NotClaimed));
        assert_eq!(state.personalise(&token(1), &token(2), 9), Err(Error::NotClaimed));
        assert_eq!(state.claim(&token(1), 1), Ok(Decision::Apply));
        assert_eq!(state.admit(Some(&token(1))), Err(Error::NotReady));
        state.record_ready();
        assert_eq!(state.admit(Some(&token(1))), Ok(()));
        assert_eq!(state.admit(Some(&token(2))), Err(Error::WrongToken));
        assert_eq!(state.admit(None), Err(Error::WrongToken));
    }

    #[test]
    fn a_claim_is_repeatable_and_exclusive() {
        let mut state = claimed();
        assert_eq!(state.claim(&token(1), 5), Ok(Decision::Repeat));
        assert_eq!(state.claim(&token(2), 5), Err(Error::WrongToken));
        assert_eq!(state.claim(&token(2), 6), Err(Error::WrongToken));
        assert_eq!(state.claim(&token(1), 6), Err(Error::StaleEpoch));
        assert_eq!(state.claim("short", 6), Err(Error::BadToken));
    }

    #[test]
    fn a_change_cut_in_the_middle_is_applied_by_its_repeat() {
        let mut state = claimed();
        assert_eq!(state.personalise(&token(1), &token(2), 6), Ok(Decision::Apply));
        assert_eq!(state.admit(Some(&token(1))), Err(Error::WrongToken));
        assert_eq!(state.admit(Some(&token(2))), Err(Error::NotReady));
        assert_eq!(state.personalise(&token(1), &token(2), 6), Ok(Decision::Apply));
        state.record_ready();
        assert_eq!(state.personalise(&token(1), &token(2), 6), Ok(Decision::Repeat));
        assert_eq!(state.claim(&token(2), 6), Err(Error::StaleEpoch));
    }

    proptest! {
        /// Against a model that keeps plain values: any order of claims and personalisations leaves the last one
        /// that was allowed, epochs only grow, and only the current token is admitted.
        #[test]
        fn any_sequence_keeps_the_newest_allowed(
            calls in proptest::collection::vec((0u8..4, 0u8..4, 0u64..6, any::<bool>()), 0..40)
        ) {
            let mut state = ClaimState::default();
            let mut model: Option<(u8, Option<u8>, u64)> = None;
            for (old, new, epoch, is_claim) in calls {
                let before = state.epoch();
                let result = if is_claim {
                    state.claim(&token(new), epoch)
                } else {
                    state.personalise(&token(old), &token(new), epoch)
                };
                let expected = match (model, is_claim) {
                    (None, true) if epoch > 0 => { model = Some((new, None, epoch)); Some(Decision::Apply) }
                    (None, _) => None,
                    (Some(current), true) => (current == (new, None, epoch)).then_some(Decision::Repeat),
                    (Some(current), false) if current == (new, Some(old), epoch) => Some(Decision::Repeat),
                    (Some((token, _, last)), false) if token == old && epoch > last => {
                        model = Some((new, Some(old), epoch));
                        Some(Decision::Apply)
                    }
                    _ => None,
                };
                prop_assert_eq!(result.ok(), expected);
                state.record_ready();
                prop_assert!(state.epoch() >= before);
                for candidate in 0u8..4 {
                    let admitted = state.admit(Some(&token(candidate))).is_ok();
                    prop_assert_eq!(admitted, model.is_some_and(|(current, ..)| current == candidate));
                }
            }
        }
    }
}
