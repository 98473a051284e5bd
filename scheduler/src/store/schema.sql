-- The scheduler's schema. Blocks are only ever appended; a block that has been released never changes.
-- BIGINT, TEXT and BYTEA only. Times are microseconds since 1970 UTC, flags 0 and 1, lists and maps JSON.
-- Constraints of the kind "only among rows that still live" are partial unique indexes.

-- version 1
CREATE TABLE tenant (
  id TEXT PRIMARY KEY,
  name TEXT NOT NULL,
  slug TEXT NOT NULL UNIQUE,
  state TEXT NOT NULL,
  plan TEXT NOT NULL,
  created_us BIGINT NOT NULL
);

CREATE TABLE workspace (
  id TEXT PRIMARY KEY,
  tenant_id TEXT NOT NULL REFERENCES tenant (id),
  slug TEXT NOT NULL,
  name TEXT NOT NULL,
  external_workspace_id TEXT,
  is_default BIGINT NOT NULL,
  created_us BIGINT NOT NULL
);
CREATE UNIQUE INDEX workspace_slug ON workspace (tenant_id, slug);
CREATE UNIQUE INDEX workspace_external ON workspace (tenant_id, external_workspace_id)
  WHERE external_workspace_id IS NOT NULL;
CREATE UNIQUE INDEX workspace_default ON workspace (tenant_id) WHERE is_default = 1;

CREATE TABLE project (
  id TEXT PRIMARY KEY,
  tenant_id TEXT NOT NULL REFERENCES tenant (id),
  workspace_id TEXT NOT NULL REFERENCES workspace (id),
  slug TEXT NOT NULL,
  name TEXT NOT NULL,
  external_project_id TEXT,
  is_default BIGINT NOT NULL,
  created_us BIGINT NOT NULL
);
CREATE UNIQUE INDEX project_slug ON project (workspace_id, slug);
CREATE UNIQUE INDEX project_external ON project (workspace_id, external_project_id)
  WHERE external_project_id IS NOT NULL;
CREATE UNIQUE INDEX project_default ON project (workspace_id) WHERE is_default = 1;

CREATE TABLE api_key (
  id TEXT PRIMARY KEY,
  tenant_id TEXT NOT NULL REFERENCES tenant (id),
  workspace_id TEXT REFERENCES workspace (id),
  name TEXT NOT NULL,
  prefix TEXT NOT NULL,
  sha256 BYTEA NOT NULL UNIQUE,
  scopes TEXT NOT NULL,
  rate_limit_rpm BIGINT,
  actor TEXT NOT NULL,
  created_us BIGINT NOT NULL,
  expires_us BIGINT,
  revoked_us BIGINT,
  last_used_us BIGINT
);
CREATE INDEX api_key_tenant ON api_key (tenant_id, id);

CREATE TABLE host (
  id TEXT PRIMARY KEY,
  state TEXT NOT NULL,
  version TEXT NOT NULL,
  ensure_address TEXT NOT NULL,
  gateway_address TEXT NOT NULL,
  preview_address TEXT NOT NULL,
  memory_mib BIGINT NOT NULL,
  disk_mib BIGINT NOT NULL,
  vcpus BIGINT NOT NULL,
  templates TEXT NOT NULL,
  vmm TEXT NOT NULL,
  memory_reserved_mib BIGINT NOT NULL,
  disk_reserved_mib BIGINT NOT NULL,
  joined_us BIGINT NOT NULL,
  seen_us BIGINT NOT NULL,
  clock_skew_us BIGINT NOT NULL
);

CREATE TABLE join_token (
  id TEXT PRIMARY KEY,
  sha256 BYTEA NOT NULL UNIQUE,
  actor TEXT NOT NULL,
  created_us BIGINT NOT NULL,
  expires_us BIGINT NOT NULL,
  used_us BIGINT,
  host_id TEXT
);

CREATE TABLE sandbox (
  id TEXT PRIMARY KEY,
  tenant_id TEXT NOT NULL REFERENCES tenant (id),
  workspace_id TEXT NOT NULL REFERENCES workspace (id),
  project_id TEXT NOT NULL REFERENCES project (id),
  external_workspace_id TEXT,
  external_user_id TEXT,
  external_project_id TEXT,
  owner_user_id TEXT,
  actor TEXT NOT NULL,
  kind TEXT NOT NULL,
  name TEXT NOT NULL,
  slug TEXT NOT NULL,
  preview_domain TEXT NOT NULL,
  metadata TEXT NOT NULL,
  tags TEXT NOT NULL,
  template TEXT NOT NULL,
  size TEXT NOT NULL,
  vcpus BIGINT NOT NULL,
  memory_mib BIGINT NOT NULL,
  disk_mib BIGINT NOT NULL,
  environment TEXT NOT NULL,
  timeout_s BIGINT,
  deadline_us BIGINT,
  idle_timeout_s BIGINT,
  on_timeout TEXT NOT NULL,
  persistent BIGINT NOT NULL,
  always_on BIGINT NOT NULL,
  auto_resume BIGINT NOT NULL,
  region TEXT,
  lineage TEXT NOT NULL,
  forked_from TEXT,
  host_name TEXT NOT NULL,
  spec_version BIGINT NOT NULL,
  desired_run TEXT NOT NULL,
  generation BIGINT NOT NULL,
  placement_epoch BIGINT NOT NULL,
  adopted_seq BIGINT NOT NULL,
  host_id TEXT REFERENCES host (id),
  memory_reserved_mib BIGINT NOT NULL,
  disk_reserved_mib BIGINT NOT NULL,
  state TEXT NOT NULL,
  state_reason TEXT NOT NULL,
  observed_generation BIGINT NOT NULL,
  local_seq BIGINT NOT NULL,
  local_cause TEXT NOT NULL,
  execution_id TEXT,
  changed_us BIGINT NOT NULL,
  boot_path TEXT NOT NULL,
  boot_us BIGINT,
  created_us BIGINT NOT NULL,
  updated_us BIGINT NOT NULL,
  started_us BIGINT,
  ready_us BIGINT,
  destroyed_us BIGINT
);
CREATE UNIQUE INDEX sandbox_slug_in_workspace ON sandbox (workspace_id, slug) WHERE desired_run <> 'destroyed';
CREATE UNIQUE INDEX sandbox_slug_in_domain ON sandbox (preview_domain, slug) WHERE desired_run <> 'destroyed';
CREATE INDEX sandbox_tenant ON sandbox (tenant_id, created_us);
CREATE INDEX sandbox_external_user ON sandbox (tenant_id, external_user_id, created_us);
CREATE INDEX sandbox_external_workspace ON sandbox (tenant_id, external_workspace_id, created_us);
CREATE INDEX sandbox_external_project ON sandbox (tenant_id, external_project_id, created_us);
CREATE INDEX sandbox_host ON sandbox (host_id) WHERE destroyed_us IS NULL;
CREATE INDEX sandbox_deadline ON sandbox (deadline_us) WHERE deadline_us IS NOT NULL;
CREATE INDEX sandbox_updated ON sandbox (updated_us);

CREATE TABLE placement (
  sandbox_id TEXT NOT NULL REFERENCES sandbox (id),
  epoch BIGINT NOT NULL,
  host_id TEXT NOT NULL,
  from_us BIGINT NOT NULL,
  PRIMARY KEY (sandbox_id, epoch)
);

CREATE TABLE execution (
  id TEXT PRIMARY KEY,
  sandbox_id TEXT NOT NULL REFERENCES sandbox (id),
  tenant_id TEXT NOT NULL,
  host_id TEXT NOT NULL,
  placement_epoch BIGINT NOT NULL,
  started_us BIGINT NOT NULL,
  ended_us BIGINT,
  end_cause TEXT NOT NULL
);
CREATE INDEX execution_sandbox ON execution (sandbox_id, started_us);

CREATE TABLE idempotency (
  tenant_id TEXT NOT NULL,
  key TEXT NOT NULL,
  request_sha256 BYTEA NOT NULL,
  owner TEXT NOT NULL,
  owner_until_us BIGINT NOT NULL,
  status BIGINT,
  body BYTEA,
  created_us BIGINT NOT NULL,
  expires_us BIGINT NOT NULL,
  PRIMARY KEY (tenant_id, key)
);
CREATE INDEX idempotency_expiry ON idempotency (expires_us);

CREATE TABLE preview (
  id TEXT PRIMARY KEY,
  tenant_id TEXT NOT NULL,
  sandbox_id TEXT NOT NULL REFERENCES sandbox (id),
  port BIGINT NOT NULL,
  key TEXT NOT NULL UNIQUE,
  name TEXT NOT NULL,
  visibility TEXT NOT NULL,
  share_generation BIGINT NOT NULL,
  actor TEXT NOT NULL,
  created_us BIGINT NOT NULL,
  updated_us BIGINT NOT NULL,
  deleted_us BIGINT
);
CREATE UNIQUE INDEX preview_port ON preview (sandbox_id, port) WHERE deleted_us IS NULL;
CREATE INDEX preview_updated ON preview (updated_us);

CREATE TABLE share_token (
  tid TEXT PRIMARY KEY,
  tenant_id TEXT NOT NULL,
  kind TEXT NOT NULL,
  sandbox_id TEXT,
  preview_id TEXT,
  external_user_id TEXT,
  prefix TEXT NOT NULL,
  sha256 BYTEA NOT NULL UNIQUE,
  scopes TEXT NOT NULL,
  label TEXT NOT NULL,
  share_generation BIGINT NOT NULL,
  actor TEXT NOT NULL,
  created_us BIGINT NOT NULL,
  expires_us BIGINT,
  revoked_us BIGINT
);
CREATE INDEX share_token_preview ON share_token (preview_id);
CREATE INDEX share_token_sandbox ON share_token (sandbox_id);
CREATE INDEX share_token_user ON share_token (tenant_id, external_user_id);

CREATE TABLE data_key (
  tenant_id TEXT NOT NULL REFERENCES tenant (id),
  purpose TEXT NOT NULL,
  master_key_id TEXT NOT NULL,
  sealed BYTEA NOT NULL,
  created_us BIGINT NOT NULL,
  PRIMARY KEY (tenant_id, purpose)
);

CREATE TABLE secret (
  id TEXT PRIMARY KEY,
  tenant_id TEXT NOT NULL REFERENCES tenant (id),
  name TEXT NOT NULL,
  logical_key TEXT NOT NULL,
  kind TEXT NOT NULL,
  scope TEXT NOT NULL,
  scope_key TEXT NOT NULL,
  expose_as_env TEXT,
  allowed_hosts TEXT NOT NULL,
  slots TEXT NOT NULL,
  swap_anywhere BIGINT NOT NULL,
  enabled BIGINT NOT NULL,
  masked TEXT NOT NULL,
  provider TEXT,
  metadata TEXT NOT NULL,
  version BIGINT NOT NULL,
  actor TEXT NOT NULL,
  created_us BIGINT NOT NULL,
  updated_us BIGINT NOT NULL,
  expires_us BIGINT,
  last_used_us BIGINT,
  deleted_us BIGINT
);
CREATE UNIQUE INDEX secret_logical_key ON secret (tenant_id, scope, scope_key, logical_key)
  WHERE deleted_us IS NULL;
CREATE UNIQUE INDEX secret_name ON secret (tenant_id, scope, scope_key, name) WHERE deleted_us IS NULL;
CREATE INDEX secret_updated ON secret (updated_us);

CREATE TABLE logical_key (
  tenant_id TEXT NOT NULL,
  logical_key TEXT NOT NULL,
  PRIMARY KEY (tenant_id, logical_key)
);

CREATE TABLE secret_version (
  secret_id TEXT NOT NULL REFERENCES secret (id),
  version BIGINT NOT NULL,
  sealed BYTEA NOT NULL,
  hosts_sha256 BYTEA NOT NULL,
  created_us BIGINT NOT NULL,
  PRIMARY KEY (secret_id, version)
);

CREATE TABLE binding (
  id TEXT PRIMARY KEY,
  tenant_id TEXT NOT NULL,
  secret_id TEXT NOT NULL REFERENCES secret (id),
  sandbox_id TEXT NOT NULL REFERENCES sandbox (id),
  logical_key TEXT NOT NULL,
  expose_as_env TEXT,
  actor TEXT NOT NULL,
  created_us BIGINT NOT NULL
);
CREATE UNIQUE INDEX binding_logical_key ON binding (sandbox_id, logical_key);
CREATE INDEX binding_secret ON binding (secret_id);

CREATE TABLE audit_log (
  id TEXT PRIMARY KEY,
  tenant_id TEXT NOT NULL,
  time_us BIGINT NOT NULL,
  action TEXT NOT NULL,
  actor TEXT NOT NULL,
  resource_type TEXT NOT NULL,
  resource_id TEXT NOT NULL,
  workspace_id TEXT,
  project_id TEXT,
  external_workspace_id TEXT,
  external_user_id TEXT,
  external_project_id TEXT,
  metadata TEXT NOT NULL,
  ip_address TEXT,
  request_id TEXT
);
CREATE INDEX audit_log_time ON audit_log (tenant_id, time_us);
CREATE INDEX audit_log_resource ON audit_log (tenant_id, resource_id, time_us);
CREATE INDEX audit_log_user ON audit_log (tenant_id, external_user_id, time_us);
CREATE INDEX audit_log_workspace ON audit_log (tenant_id, external_workspace_id, time_us);

CREATE TABLE usage_delta (
  execution_id TEXT NOT NULL,
  seq BIGINT NOT NULL,
  sandbox_id TEXT NOT NULL,
  tenant_id TEXT NOT NULL,
  from_us BIGINT NOT NULL,
  to_us BIGINT NOT NULL,
  wall_us BIGINT NOT NULL,
  vcpu_alloc_us BIGINT NOT NULL,
  mem_alloc_mib_us BIGINT NOT NULL,
  cpu_used_us BIGINT NOT NULL,
  mem_used_mib_us BIGINT NOT NULL,
  disk_mib_us BIGINT NOT NULL,
  snapshot_mib_us BIGINT NOT NULL,
  net_egress_bytes BIGINT NOT NULL,
  net_ingress_bytes BIGINT NOT NULL,
  PRIMARY KEY (execution_id, seq)
);
CREATE INDEX usage_delta_sandbox ON usage_delta (sandbox_id, to_us);
CREATE INDEX usage_delta_tenant ON usage_delta (tenant_id, from_us);

CREATE TABLE usage_rollup (
  hour_us BIGINT NOT NULL,
  sandbox_id TEXT NOT NULL,
  tenant_id TEXT NOT NULL,
  workspace_id TEXT NOT NULL,
  project_id TEXT NOT NULL,
  external_workspace_id TEXT,
  external_user_id TEXT,
  external_project_id TEXT,
  kind TEXT NOT NULL,
  wall_us BIGINT NOT NULL,
  vcpu_alloc_us BIGINT NOT NULL,
  mem_alloc_mib_us BIGINT NOT NULL,
  cpu_used_us BIGINT NOT NULL,
  mem_used_mib_us BIGINT NOT NULL,
  disk_mib_us BIGINT NOT NULL,
  snapshot_mib_us BIGINT NOT NULL,
  net_egress_bytes BIGINT NOT NULL,
  net_ingress_bytes BIGINT NOT NULL,
  PRIMARY KEY (sandbox_id, hour_us)
);
CREATE INDEX usage_rollup_tenant ON usage_rollup (tenant_id, hour_us);
CREATE INDEX usage_rollup_user ON usage_rollup (tenant_id, external_user_id, hour_us);
CREATE INDEX usage_rollup_workspace ON usage_rollup (tenant_id, external_workspace_id, hour_us);

CREATE TABLE quota (
  tenant_id TEXT NOT NULL REFERENCES tenant (id),
  subject TEXT NOT NULL,
  subject_id TEXT NOT NULL,
  max_sandboxes BIGINT,
  max_concurrent BIGINT,
  max_vcpus BIGINT,
  max_memory_mib BIGINT,
  max_disk_mib BIGINT,
  max_credit_cents BIGINT,
  updated_us BIGINT NOT NULL,
  PRIMARY KEY (tenant_id, subject, subject_id)
);

CREATE TABLE quota_use (
  tenant_id TEXT NOT NULL REFERENCES tenant (id),
  subject TEXT NOT NULL,
  subject_id TEXT NOT NULL,
  sandboxes BIGINT NOT NULL,
  concurrent BIGINT NOT NULL,
  vcpus BIGINT NOT NULL,
  memory_mib BIGINT NOT NULL,
  disk_mib BIGINT NOT NULL,
  PRIMARY KEY (tenant_id, subject, subject_id)
);

CREATE TABLE setting (
  tenant_id TEXT NOT NULL,
  name TEXT NOT NULL,
  value TEXT NOT NULL,
  actor TEXT NOT NULL,
  updated_us BIGINT NOT NULL,
  PRIMARY KEY (tenant_id, name)
);

CREATE TABLE event (
  id TEXT PRIMARY KEY,
  tenant_id TEXT NOT NULL,
  kind TEXT NOT NULL,
  sandbox_id TEXT,
  data TEXT NOT NULL,
  created_us BIGINT NOT NULL
);
CREATE INDEX event_tenant ON event (tenant_id, created_us);
CREATE INDEX event_sandbox ON event (sandbox_id, created_us);

CREATE TABLE signing_key (
  kid TEXT PRIMARY KEY,
  master_key_id TEXT NOT NULL,
  sealed BYTEA NOT NULL,
  public_key BYTEA NOT NULL,
  created_us BIGINT NOT NULL,
  signs_until_us BIGINT NOT NULL,
  not_after_us BIGINT NOT NULL
);
