-- version 1
CREATE TABLE host_fact (
  key TEXT PRIMARY KEY,
  value TEXT NOT NULL
) STRICT;

-- What the scheduler (or the operator, for origin 'local') wants and what this host last committed.
CREATE TABLE sandbox (
  id TEXT PRIMARY KEY,
  origin TEXT NOT NULL,
  spec TEXT NOT NULL,
  lineage TEXT NOT NULL,
  run TEXT NOT NULL,
  generation INTEGER NOT NULL,
  placement_epoch INTEGER NOT NULL,
  fenced_epoch INTEGER NOT NULL,
  local_seq INTEGER NOT NULL,
  local_base_generation INTEGER,
  local_run TEXT,
  local_cause TEXT,
  state TEXT NOT NULL,
  state_reason TEXT,
  execution TEXT,
  snapshot TEXT,
  image TEXT,
  guest_token TEXT,
  guest_epoch INTEGER NOT NULL,
  boot_path TEXT,
  boot_us INTEGER,
  created_us INTEGER NOT NULL,
  changed_us INTEGER NOT NULL
) STRICT;

-- One row per VMM launch, committed before the first host effect, never reused.
CREATE TABLE execution (
  id TEXT PRIMARY KEY,
  sandbox TEXT,
  phase TEXT NOT NULL,
  image TEXT NOT NULL,
  vmm_uid INTEGER NOT NULL,
  vmm_pid INTEGER,
  vmm_start_time INTEGER,
  restore TEXT,
  token TEXT NOT NULL,
  old_token TEXT,
  epoch INTEGER NOT NULL,
  boot_id TEXT NOT NULL,
  created_us INTEGER NOT NULL,
  started_us INTEGER,
  ended_us INTEGER,
  end_cause TEXT
) STRICT;
CREATE UNIQUE INDEX execution_uid ON execution (vmm_uid) WHERE ended_us IS NULL;
CREATE INDEX execution_open ON execution (id) WHERE ended_us IS NULL;

-- The last reading of a running execution: where the next delta starts.
CREATE TABLE reading (
  execution TEXT PRIMARY KEY,
  seq INTEGER NOT NULL,
  at_us INTEGER NOT NULL,
  boottime_us INTEGER NOT NULL,
  cpu_us INTEGER NOT NULL,
  memory_mib INTEGER NOT NULL,
  disk_mib INTEGER NOT NULL,
  snapshot_mib INTEGER NOT NULL,
  egress_bytes INTEGER NOT NULL,
  ingress_bytes INTEGER NOT NULL
) STRICT;

-- Immutable deltas between two readings.
CREATE TABLE usage_delta (
  execution TEXT NOT NULL,
  seq INTEGER NOT NULL,
  sandbox TEXT NOT NULL,
  from_us INTEGER NOT NULL,
  to_us INTEGER NOT NULL,
  wall_us INTEGER NOT NULL,
  vcpu_alloc_us INTEGER NOT NULL,
  mem_alloc_mib_us INTEGER NOT NULL,
  cpu_used_us INTEGER NOT NULL,
  mem_used_mib_us INTEGER NOT NULL,
  disk_mib_us INTEGER NOT NULL,
  snapshot_mib_us INTEGER NOT NULL,
  net_egress_bytes INTEGER NOT NULL,
  net_ingress_bytes INTEGER NOT NULL,
  PRIMARY KEY (execution, seq)
) STRICT;
CREATE INDEX usage_delta_sandbox ON usage_delta (sandbox, from_us);

-- What the scheduler has not acknowledged yet; `body` is one encoded OutboxRow without its seq.
CREATE TABLE outbox (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  body BLOB NOT NULL
) STRICT;
-- version 2
CREATE INDEX execution_sandbox ON execution (sandbox);
CREATE INDEX execution_ended ON execution (ended_us) WHERE ended_us IS NOT NULL;
CREATE INDEX sandbox_destroyed ON sandbox (changed_us) WHERE state = 'destroyed';
-- What each data-plane process had counted of the bytes in egress_bytes and ingress_bytes.
ALTER TABLE reading ADD COLUMN egress_run INTEGER NOT NULL DEFAULT 0;
ALTER TABLE reading ADD COLUMN egress_from_guest_bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE reading ADD COLUMN egress_to_guest_bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE reading ADD COLUMN edge_run INTEGER NOT NULL DEFAULT 0;
ALTER TABLE reading ADD COLUMN edge_from_guest_bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE reading ADD COLUMN edge_to_guest_bytes INTEGER NOT NULL DEFAULT 0;
