//! How a machine becomes a host, and how a host gets new certificates before the old ones end.
//!
//! A join token is good for one host. Certificates are signed before the token is used up, so a malformed request
//! costs nothing; the row and the use of the token are one transaction.

use roost_domain::id::HostId;
use roost_proto::host as proto;
use sha2::{Digest as _, Sha256};
use tonic::Status;

use super::{Fleet, wire};
use crate::pki::{self, Role};
use crate::store::host;

const TOKEN_BYTES_MAX: usize = 256;
/// agent, edge, egress and the egress intermediate.
const REQUESTS_MAX: usize = 4;
const EGRESS_CA: &str = "egress_ca";

/// How a join token is stored.
pub fn hash_token(token: &str) -> Vec<u8> {
    Sha256::digest(token.as_bytes()).to_vec()
}

impl Fleet {
    pub(super) async fn join(&self, request: proto::JoinRequest) -> Result<proto::JoinReply, Status> {
        if request.token.is_empty() || request.token.len() > TOKEN_BYTES_MAX {
            return Err(refused());
        }
        let (sha256, now_us) = (hash_token(&request.token), self.now_us());
        let hash = sha256.clone();
        let known = self.shared.store.read(move |tx| host::is_join_token_live(tx, &hash, now_us)).await;
        if !known.map_err(|error| super::server::internal(&error))? {
            return Err(refused());
        }
        let info =
            request.info.ok_or_else(|| Status::invalid_argument("the host does not describe itself"))?;
        let host_id = roost_daemon::ids::fresh::<HostId>().to_string();
        let certificates = self.sign(&host_id, &request.requests)?;
        let (row, id) = (wire::host(&host_id, &info, now_us), host_id.clone());
        let joined = self.shared.store.write(move |tx| {
            if !host::take_join_token(tx, &sha256, &id, now_us)? {
                return Ok(false);
            }
            host::insert(tx, &row)?;
            Ok(true)
        });
        if !joined.await.map_err(|error| super::server::internal(&error))? {
            return Err(refused());
        }
        tracing::info!(host = host_id, vmm = info.vmm, "a host joined");
        let preview = self.shared.pki.preview();
        Ok(proto::JoinReply {
            host_id,
            certificates,
            fleet_roots_pem: self.shared.pki.fleet_roots_pem().to_owned().into(),
            egress_roots_pem: self.shared.pki.egress_roots_pem().into(),
            preview_chain_pem: preview.map(|keyed| keyed.chain_pem.clone()).unwrap_or_default().into(),
            preview_key_pem: preview.map(|keyed| keyed.key_pem.clone()).unwrap_or_default().into(),
        })
    }

    pub(super) fn renew(
        &self,
        host_id: &str,
        request: &proto::RenewRequest,
    ) -> Result<proto::RenewReply, Status> {
        Ok(proto::RenewReply {
            certificates: self.sign(host_id, &request.requests)?,
            fleet_roots_pem: self.shared.pki.fleet_roots_pem().to_owned().into(),
            egress_roots_pem: self.shared.pki.egress_roots_pem().into(),
        })
    }

    /// Signs for this host and nobody else; each role at most once.
    fn sign(
        &self,
        host_id: &str,
        requests: &[proto::CertificateRequest],
    ) -> Result<Vec<proto::Certificate>, Status> {
        if requests.len() > REQUESTS_MAX {
            return Err(Status::invalid_argument("more certificate requests than a host has identities"));
        }
        let mut signed: Vec<proto::Certificate> = Vec::new();
        for request in requests {
            if signed.iter().any(|done| done.role == request.role) {
                return Err(Status::invalid_argument(format!(
                    "two certificate requests for {}",
                    request.role
                )));
            }
            let certificate = self.sign_one(host_id, request).map_err(|error| match error {
                pki::Error::Request { .. } => Status::invalid_argument(error.to_string()),
                _ => super::server::internal(&error),
            })?;
            signed.push(certificate);
        }
        Ok(signed)
    }

    fn sign_one(
        &self,
        host_id: &str,
        request: &proto::CertificateRequest,
    ) -> Result<proto::Certificate, pki::Error> {
        let (pki, now_us) = (&self.shared.pki, self.now_us());
        let (chain_pem, not_after_us) = match Role::parse(&request.role) {
            Some(role) => pki.sign_host(host_id, role, &request.csr_pem, now_us)?,
            None if request.role == EGRESS_CA => {
                pki.sign_egress_intermediate(host_id, &request.csr_pem, now_us)?
            }
            None => {
                let role = wire::stored_text(&request.role);
                return Err(pki::Error::Request { role, problem: "names no role of a host" });
            }
        };
        Ok(proto::Certificate { role: request.role.clone(), chain_pem: chain_pem.into(), not_after_us })
    }
}

/// One answer for every token that does not serve, so that nothing is learned by trying.
fn refused() -> Status {
    Status::unauthenticated(
        "the join token is unknown, used or over: make one with `roost-scheduler admin host token`",
    )
}
