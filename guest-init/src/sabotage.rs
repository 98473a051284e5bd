//! The guest's defences that a test build can switch off. Without the feature both are on by a constant, and the
//! package does not depend on the one that owns the names.

#[cfg(feature = "sabotage")]
pub(crate) use roost_domain::sabotage::Defence;

#[cfg(not(feature = "sabotage"))]
#[derive(Debug, Clone, Copy)]
pub(crate) enum Defence {
    GuestToken,
    GuestEpoch,
}

#[cfg(not(feature = "sabotage"))]
impl Defence {
    pub(crate) const fn is_off(self) -> bool {
        match self {
            Self::GuestToken | Self::GuestEpoch => false,
        }
    }
}
