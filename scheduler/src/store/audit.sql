-- The schema of the egress audit: one database per day beside SQLite, one table beside PostgreSQL's others.
-- The same rules as schema.sql.

-- version 1
CREATE TABLE egress_event (
  event_id TEXT PRIMARY KEY,
  time_us BIGINT NOT NULL,
  tenant_id TEXT NOT NULL,
  workspace_id TEXT NOT NULL,
  project_id TEXT NOT NULL,
  external_workspace_id TEXT,
  external_user_id TEXT,
  external_project_id TEXT,
  sandbox_id TEXT NOT NULL,
  resource_type TEXT NOT NULL,
  execution_id TEXT NOT NULL,
  host_id TEXT NOT NULL,
  scheme TEXT NOT NULL,
  host TEXT NOT NULL,
  port BIGINT NOT NULL,
  method TEXT,
  path TEXT,
  secrets TEXT NOT NULL,
  completed_us BIGINT,
  action TEXT,
  rejected_by TEXT,
  policy_id TEXT,
  rule_id TEXT,
  status_code BIGINT,
  duration_us BIGINT,
  bytes_in BIGINT,
  bytes_out BIGINT,
  address TEXT,
  detail TEXT
);
CREATE INDEX egress_event_time ON egress_event (tenant_id, time_us);
CREATE INDEX egress_event_sandbox ON egress_event (sandbox_id, time_us);
CREATE INDEX egress_event_user ON egress_event (tenant_id, external_user_id, time_us);
CREATE INDEX egress_event_workspace ON egress_event (tenant_id, external_workspace_id, time_us);
CREATE INDEX egress_event_age ON egress_event (time_us);
