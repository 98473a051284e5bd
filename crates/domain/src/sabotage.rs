//! The defences a test build can switch off, one at a time, to see that a test notices.
//!
//! Owns their names. Without the feature `sabotage` every defence is on by a constant, so nothing of this is in a
//! release; with it, the environment variable [`VARIABLE`] names the one that is off. Reading the environment is the
//! one impurity of this crate: a test of a library has no `main` that could pass the name down.

/// Names the defence that is off. Only a build with the feature `sabotage` looks at it.
pub const VARIABLE: &str = "ROOST_SABOTAGE";

macro_rules! defences {
    ($($variant:ident = $name:literal,)*) => {
        /// A check that, were it gone, would let somebody do what they may not.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Defence {
            $($variant,)*
        }

        impl Defence {
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

defences! {
    DenyFloor = "deny-floor",
    MetadataFloor = "metadata-floor",
    CarriedAddress = "carried-address",
    CheckedDial = "checked-dial",
    DialledPeer = "dialled-peer",
    PlacementEpoch = "placement-epoch",
    WishOrder = "wish-order",
    TokenExpiry = "token-expiry",
    TokenResource = "token-resource",
    TokenRevocation = "token-revocation",
    TokenScope = "token-scope",
    TokenSignature = "token-signature",
    PreviewCredentials = "preview-credentials",
    CookieIsolation = "cookie-isolation",
    ClientClaims = "client-claims",
    FrameAncestors = "frame-ancestors",
    GuestCookies = "guest-cookies",
    GatewayCaller = "gateway-caller",
    ControlPeer = "control-peer",
    SystemCallFilter = "system-call-filter",
    DataplaneBounds = "dataplane-bounds",
    HostBinding = "host-binding",
    NamedHost = "named-host",
    CredentialTls = "credential-tls",
    HeaderSlots = "header-slots",
    ForeignPlaceholder = "foreign-placeholder",
    OccurrenceLimit = "occurrence-limit",
    LeaseExpiry = "lease-expiry",
    LeaseChange = "lease-change",
    EgressPolicy = "egress-policy",
    HostAgreement = "host-agreement",
    NominatedHeaders = "nominated-headers",
    GreetingAgreement = "greeting-agreement",
    UnknownAddress = "unknown-address",
    ResponseScrubbing = "response-scrubbing",
    ReadableResponse = "readable-response",
    AuditIntent = "audit-intent",
    AuditShare = "audit-share",
    SocketIdentity = "socket-identity",
    AttachOrder = "attach-order",
    UpstreamTls = "upstream-tls",
    NetworkSeal = "network-seal",
    GuestSource = "guest-source",
    VmmUser = "vmm-user",
    VmmNetwork = "vmm-network",
    SameProcess = "same-process",
    Tenancy = "tenancy",
    Scopes = "scopes",
    WorkspaceKey = "workspace-key",
    KeyRevocation = "key-revocation",
    RpcGate = "rpc-gate",
    HostOwnReports = "host-own-reports",
    HostOwnUsage = "host-own-usage",
    LeasePlacement = "lease-placement",
    Idempotency = "idempotency",
    KeyEffect = "key-effect",
    UsageOnce = "usage-once",
    Quota = "quota",
    HostRoom = "host-room",
    SealedPlace = "sealed-place",
    PlaceholderLineage = "placeholder-lineage",
    WideningValue = "widening-value",
    OtherCustomer = "other-customer",
    EndUserSwitch = "end-user-switch",
    ShareLifetime = "share-lifetime",
    GuestToken = "guest-token",
    GuestEpoch = "guest-epoch",
}

impl Defence {
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|defence| defence.name() == name)
    }

    /// Whether this build runs without the defence.
    #[cfg(not(feature = "sabotage"))]
    #[must_use]
    pub const fn is_off(self) -> bool {
        false
    }

    /// Whether this process runs without the defence.
    #[cfg(feature = "sabotage")]
    #[must_use]
    pub fn is_off(self) -> bool {
        switched_off() == Some(self)
    }
}

/// What a daemon says about itself when it starts; nothing in a build whose defences are all on for good.
#[cfg(not(feature = "sabotage"))]
#[must_use]
pub const fn announce() -> Option<&'static str> {
    None
}

/// What a daemon says about itself when it starts.
#[cfg(feature = "sabotage")]
#[must_use]
pub fn announce() -> Option<String> {
    let off = switched_off().map_or("none", Defence::name);
    Some(format!("A BUILD FOR TESTS ONLY, IN WHICH DEFENCES CAN BE SWITCHED OFF; switched off: {off}"))
}

/// Read once. A name that is not known ends the process: a misspelt one must not pass for a defence that holds.
#[cfg(feature = "sabotage")]
fn switched_off() -> Option<Defence> {
    static OFF: std::sync::OnceLock<Option<Defence>> = std::sync::OnceLock::new();
    *OFF.get_or_init(|| {
        let name = std::env::var_os(VARIABLE).filter(|name| !name.is_empty())?;
        let known = name.to_str().and_then(Defence::from_name);
        if known.is_none() {
            eprintln!("{VARIABLE} names no defence: {}", name.display());
            std::process::exit(2);
        }
        known
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_defence_has_a_name_of_its_own() {
        for defence in Defence::ALL {
            assert_eq!(Defence::from_name(defence.name()), Some(*defence));
        }
        assert_eq!(Defence::from_name("no-such-defence"), None);
    }

    /// Of the build at hand: without the feature the environment does not matter.
    #[cfg(not(feature = "sabotage"))]
    #[test]
    fn no_defence_is_off_in_a_build_without_the_feature() {
        assert!(Defence::ALL.iter().all(|defence| !defence.is_off()));
        assert_eq!(announce(), None);
    }
}
