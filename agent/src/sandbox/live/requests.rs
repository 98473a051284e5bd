//! What the data plane asks of the agent, and what it must be told before anything else.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use roost_domain::id::ExecutionId;
use roost_proto::dataplane::from_dataplane::Message as Answer;
use roost_proto::dataplane::to_dataplane::Message as Ask;
use roost_proto::dataplane::{Configure, FloorException, MoreSockets};
use tokio::sync::mpsc;
use tracing::warn;

use super::Live;
use crate::host::{netns, off_worker, sockets};
use crate::plane::{ANSWER_DEADLINE, Request};

/// Dial sockets one request may ask for; edge has its own cap per execution.
const SOCKETS_MAX: u32 = 16;

impl Live {
    /// Serves unsolicited requests until the sessions end.
    pub async fn serve_requests(self: Arc<Self>, mut requests: mpsc::Receiver<Request>) {
        while let Some(request) = requests.recv().await {
            if let Some(Answer::NeedSockets(need)) = request.message.message {
                let live = Arc::clone(&self);
                tokio::spawn(async move {
                    if let Err(error) = live.give_sockets(&need.execution, need.count).await {
                        warn!(execution = need.execution, error = %error, "no further dial sockets");
                    }
                });
            }
        }
    }

    async fn give_sockets(
        &self,
        execution: &str,
        count: u32,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let id: ExecutionId = execution.parse()?;
        let name = self.host.names(&id).netns;
        let count = count.clamp(1, SOCKETS_MAX) as usize;
        let made: Vec<OwnedFd> = off_worker(move || match netns::find(&name) {
            Ok(Some(netns)) => sockets::open_dial_sockets(&netns, count).map_err(|error| error.to_string()),
            Ok(None) => Err("its namespace is gone".to_owned()),
            Err(error) => Err(error.to_string()),
        })
        .await?;
        let borrowed: Vec<BorrowedFd<'_>> = made.iter().map(AsFd::as_fd).collect();
        let more = MoreSockets { execution: execution.to_owned() };
        Ok(self.plane.edge.tell(Ask::MoreSockets(more), &borrowed, ANSWER_DEADLINE).await?)
    }

    /// Gives egress the operator's settings whenever it comes back.
    pub async fn keep_configured(self: Arc<Self>) {
        let mut changes = self.plane.changes();
        let mut was_connected = false;
        loop {
            let is_connected = self.plane.egress.is_connected();
            if is_connected && !was_connected {
                let exceptions = self.config.egress.floor_exceptions.iter().map(|exception| FloorException {
                    name: exception.name.clone(),
                    port: exception.port.into(),
                    cidr: exception.cidr.clone(),
                });
                let configure = Configure { floor_exceptions: exceptions.collect() };
                if let Err(error) =
                    self.plane.egress.tell(Ask::Configure(configure), &[], ANSWER_DEADLINE).await
                {
                    warn!(error = %roost_daemon::telemetry::chain(&error), "egress was not configured");
                }
            }
            was_connected = is_connected;
            if changes.changed().await.is_err() {
                return;
            }
        }
    }
}
