//! A scheduler's vault that answers what the test says.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use roost_dataplane::egress::credentials::{LeaseError, Leases};
use roost_domain::placeholder::Format;
use roost_proto::host::{Credential, Resolution, ResolveRequest, resolution::Outcome};

/// The value no guest, row or log may ever see.
pub(crate) const SECRET: &str = "sk-live-SENTINEL-c0ffee-0123456789";

#[derive(Debug, Default)]
pub(crate) struct FakeLeases {
    outcomes: Mutex<HashMap<String, Outcome>>,
    pub(crate) away: AtomicBool,
    pub(crate) asked: AtomicUsize,
}

impl FakeLeases {
    pub(crate) fn set(&self, placeholder: &str, outcome: Outcome) {
        self.outcomes.lock().unwrap().insert(placeholder.to_owned(), outcome);
    }

    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

#[async_trait::async_trait]
impl Leases for FakeLeases {
    async fn resolve(&self, request: ResolveRequest) -> Result<Vec<Resolution>, LeaseError> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        if self.away.load(Ordering::Relaxed) {
            return Err(LeaseError::Unavailable("away".into()));
        }
        assert!(request.execution.starts_with("exe_") && request.sandbox.starts_with("sbx_"));
        let outcomes = self.outcomes.lock().unwrap();
        let resolve = |placeholder: String| {
            let outcome = outcomes.get(&placeholder).cloned();
            let outcome = outcome.unwrap_or(Outcome::None("no_match".to_owned()));
            Resolution { placeholder, outcome: Some(outcome) }
        };
        Ok(request.placeholders.into_iter().map(resolve).collect())
    }
}

/// A placeholder as the scheduler would have made it.
pub(crate) fn placeholder(seed: u8) -> String {
    Format::default().compose("OPENAI_API_KEY", &[seed; 32])
}

/// A lease of [`SECRET`] for `api.example.com`, good for 30 s.
pub(crate) fn credential() -> Credential {
    Credential {
        secret_id: "sec_01d39zy06fgsctvn4t2v9pkhfz".to_owned(),
        name: "OPENAI_API_KEY".to_owned(),
        logical_key: "OPENAI_API_KEY".to_owned(),
        scope: "external_user".to_owned(),
        value: SECRET.into(),
        allowed_hosts: vec!["api.example.com".to_owned()],
        slots: Vec::new(),
        version: 1,
        expires_us: roost_daemon::clock::now_us() + 30_000_000,
        unbound: false,
    }
}
