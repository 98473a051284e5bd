//! `doctor`: says for each need of a host whether it is met, and how to meet it.
//!
//! Two halves: `facts` looks at the host and judges nothing; `judge` is pure, so that every line can be made to say
//! "missing" in a test.

mod facts;
mod judge;

use roost_proto::local::Finding;

use crate::config::Config;
use crate::plane::Plane;

/// Looks at this host; `plane` is there when a daemon asks.
pub(crate) async fn examine(config: &Config, plane: Option<&Plane>) -> Vec<Finding> {
    let facts = facts::gather(config, plane).await;
    judge::judge(config, &facts)
}
