//! What an operator sees of the edge at /metrics. Counts; names no tenant, no host name, no execution.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use roost_daemon::health::Registry;

use crate::guest::Guests;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answer {
    /// Of an answer of a guest only the class (200, 300 …): a guest must not choose how many there are.
    status: u16,
    /// The code of a refusal of ours; empty for an answer of the guest.
    code: &'static str,
}

/// The counters that previews keep.
#[derive(Debug, Clone, Default)]
pub struct PreviewMetrics {
    answers: Family<Answer, Counter>,
}

impl PreviewMetrics {
    /// An answer of a guest, or our redirect to the clean address.
    pub fn count_answer(&self, status: http::StatusCode) {
        self.count(status.as_u16() / 100 * 100, "");
    }

    /// A page of ours.
    pub fn count_refusal(&self, status: http::StatusCode, code: &'static str) {
        self.count(status.as_u16(), code);
    }

    fn count(&self, status: u16, code: &'static str) {
        self.answers.get_or_create(&Answer { status, code }).inc();
    }
}

/// Registers everything the edge counts.
pub(super) fn register(registry: &mut Registry, guests: Arc<Guests>) -> PreviewMetrics {
    let metrics = PreviewMetrics::default();
    let help = "Answers to preview requests, by status and by the code of a refusal";
    registry.register("roost_edge_preview_answers", help, metrics.answers.clone());
    registry.register_collector(Box::new(Executions(guests)));
    metrics
}

/// Read when it is asked for, so that it is never out of date.
#[derive(Debug)]
struct Executions(Arc<Guests>);

impl Collector for Executions {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let attached = ConstGauge::new(i64::try_from(self.0.held().len()).unwrap_or(i64::MAX));
        let descriptor = encoder.encode_descriptor(
            "roost_edge_executions",
            "Executions attached to this process",
            None,
            attached.metric_type(),
        )?;
        attached.encode(descriptor)
    }
}
