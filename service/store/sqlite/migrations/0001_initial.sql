-- Times are integers of milliseconds since the epoch. JSON is text. Ids sort by time, and the id of a
-- generation, callback, event or delivery contains the time of its creation.
-- Columns named sealed_* are encrypted under a key derived from GENHOOK_SECRET_KEYS.
-- Every index costs a write for each row: docs/performance.md has the budget of each operation.

CREATE TABLE tenants (
    id TEXT PRIMARY KEY,
    sealed_secrets BLOB NOT NULL,
    created_at INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE keys (
    id TEXT PRIMARY KEY,
    tenant TEXT NOT NULL,
    name TEXT NOT NULL,
    key_sha256 BLOB NOT NULL UNIQUE,
    scopes TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    last_used_at INTEGER,
    revoked_at INTEGER
);
CREATE INDEX keys_tenant ON keys (tenant, id);

-- Who is signed in to the pages. The cookie has the id; the key is named by the digest that it has in
-- `keys`, so that it ends every sign-in when it is revoked.
CREATE TABLE sign_ins (
    id_sha256 BLOB PRIMARY KEY,
    key_sha256 BLOB NOT NULL,
    expires_at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX sign_ins_key ON sign_ins (key_sha256, expires_at);
CREATE INDEX sign_ins_expires ON sign_ins (expires_at);

CREATE TABLE idempotency (
    tenant TEXT NOT NULL,
    key TEXT NOT NULL,
    request_sha256 BLOB NOT NULL,
    resource_id TEXT NOT NULL,
    status_code INTEGER,
    sealed_answer BLOB,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (tenant, key)
) WITHOUT ROWID;
CREATE INDEX idempotency_created ON idempotency (created_at);

CREATE TABLE generations (
    id TEXT PRIMARY KEY,
    tenant TEXT NOT NULL,
    model TEXT NOT NULL,
    status TEXT NOT NULL,
    route TEXT NOT NULL,
    notify_url TEXT,
    notify_subscriber_id TEXT,
    retry_of TEXT,
    task_id TEXT,
    credits INTEGER,
    submitted_at INTEGER,
    completed_at INTEGER,
    deadline_at INTEGER NOT NULL,
    nonce TEXT NOT NULL,
    submission TEXT NOT NULL,
    submit_at INTEGER,
    submit_count INTEGER NOT NULL DEFAULT 0,
    next_poll_at INTEGER,
    poll_count INTEGER NOT NULL DEFAULT 0,
    trouble_count INTEGER NOT NULL DEFAULT 0,
    late_poll_count INTEGER NOT NULL DEFAULT 0,
    last_poll_at INTEGER,
    -- The ids of its events in order, as JSON: there are few, and an index would cost every event.
    event_ids TEXT NOT NULL DEFAULT '[]'
) WITHOUT ROWID;
CREATE INDEX generations_tenant ON generations (tenant, id);
-- Other statuses need none: most generations succeed, and open ones are among the newest.
CREATE INDEX generations_failed ON generations (tenant, status, id)
    WHERE status IN ('failed', 'timed_out', 'canceled');
CREATE INDEX generations_model ON generations (tenant, model, id);
-- By tenant, so that what one has due is found beside any number of another's.
CREATE INDEX generations_poll ON generations (tenant, next_poll_at) WHERE next_poll_at IS NOT NULL;
CREATE INDEX generations_submit ON generations (tenant, submit_at) WHERE submit_at IS NOT NULL;
-- A planned poll is never after the deadline, so only generations without one are in here.
CREATE INDEX generations_deadline ON generations (deadline_at)
    WHERE status IN ('queued', 'processing') AND next_poll_at IS NULL;
CREATE INDEX generations_task ON generations (task_id) WHERE task_id IS NOT NULL;
CREATE INDEX generations_notify ON generations (notify_subscriber_id)
    WHERE notify_subscriber_id IS NOT NULL;

-- Other names of tasks: ids under which upstream answers about a task. A name that a second generation
-- met is revoked: it is a name of neither.
CREATE TABLE task_names (
    task_id TEXT PRIMARY KEY,
    generation_id TEXT NOT NULL,
    is_revoked INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE INDEX task_names_generation ON task_names (generation_id);

-- The queue of confirmations. In a table of its own, so that a callback need not update generations.
CREATE TABLE confirmations (
    generation_id TEXT PRIMARY KEY,
    due_at INTEGER NOT NULL
) WITHOUT ROWID;

-- The large columns of a generation, apart from those that are searched and updated often.
CREATE TABLE generation_bodies (
    generation_id TEXT PRIMARY KEY,
    input TEXT NOT NULL,
    metadata TEXT NOT NULL,
    output TEXT,
    error TEXT
);

CREATE TABLE generation_metadata (
    tenant TEXT NOT NULL,
    name TEXT NOT NULL,
    value TEXT NOT NULL,
    generation_id TEXT NOT NULL,
    PRIMARY KEY (tenant, name, value, generation_id)
) WITHOUT ROWID;

-- Submissions and polls of a generation with their answers, for its timeline.
CREATE TABLE exchanges (
    generation_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    number INTEGER NOT NULL,
    at INTEGER NOT NULL,
    duration_ms INTEGER NOT NULL,
    status_code INTEGER,
    outcome TEXT NOT NULL,
    detail TEXT,
    PRIMARY KEY (generation_id, kind, number)
) WITHOUT ROWID;

-- tenant is '' if the callback has no valid token.
CREATE TABLE callbacks (
    tenant TEXT NOT NULL,
    id TEXT NOT NULL,
    generation_id TEXT NOT NULL,
    upstream TEXT NOT NULL,
    verdict TEXT NOT NULL,
    reason TEXT,
    trust TEXT,
    body_digest TEXT NOT NULL,
    PRIMARY KEY (tenant, id)
) WITHOUT ROWID;
CREATE INDEX callbacks_rejected ON callbacks (id) WHERE verdict = 'rejected';

-- The key begins with the generation, so that it also answers which callbacks a generation has and
-- whether a body is repeated.
CREATE TABLE callback_bodies (
    generation_id TEXT NOT NULL,
    body_digest TEXT NOT NULL,
    callback_id TEXT NOT NULL,
    headers BLOB NOT NULL,
    body BLOB NOT NULL,
    PRIMARY KEY (generation_id, body_digest, callback_id)
) WITHOUT ROWID;

-- seq is the order of commits. SQLite uses a seq again after the newest events are deleted, so cursors
-- of lists are ids. The cursor of a deleted event stands for the event before it.
CREATE TABLE events (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    tenant TEXT NOT NULL,
    type TEXT NOT NULL,
    generation_id TEXT,
    body BLOB NOT NULL
);
CREATE INDEX events_tenant ON events (tenant, seq, type);

CREATE TABLE subscribers (
    id TEXT PRIMARY KEY,
    tenant TEXT NOT NULL,
    is_notify INTEGER NOT NULL DEFAULT 0,
    url TEXT NOT NULL,
    description TEXT NOT NULL DEFAULT '',
    event_types TEXT NOT NULL DEFAULT '[]',
    filter TEXT NOT NULL DEFAULT '{}',
    header_names TEXT NOT NULL DEFAULT '[]',
    sealed_headers BLOB,
    sealed_secrets BLOB,
    status TEXT NOT NULL DEFAULT 'active',
    disabled_reason TEXT,
    max_in_flight INTEGER NOT NULL,
    rate_per_second REAL,
    retry_schedule_seconds TEXT NOT NULL,
    ordered INTEGER NOT NULL DEFAULT 0,
    payload TEXT NOT NULL DEFAULT 'full',
    signature TEXT NOT NULL DEFAULT 'v1',
    failing_since INTEGER,
    last_failed_at INTEGER,
    probing INTEGER NOT NULL DEFAULT 0,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL
);
CREATE INDEX subscribers_tenant ON subscribers (tenant, id) WHERE is_notify = 0;
CREATE UNIQUE INDEX subscribers_notify ON subscribers (tenant, url) WHERE is_notify = 1;

-- Until when a receiver asked lanes of a tenant to rest. `receiver` is the origin for all lanes there;
-- the origin and `notify` for its `notify_url`s, the origin and a subscriber's id for one lane alone.
CREATE TABLE rests (
    tenant TEXT NOT NULL,
    receiver TEXT NOT NULL,
    slow_until INTEGER NOT NULL,
    asked_at INTEGER NOT NULL,
    PRIMARY KEY (tenant, receiver)
) WITHOUT ROWID;
CREATE INDEX rests_until ON rests (slow_until);

CREATE TABLE deliveries (
    tenant TEXT NOT NULL,
    id TEXT NOT NULL,
    subscriber_id TEXT NOT NULL,
    event_id TEXT NOT NULL,
    event_type TEXT NOT NULL,
    generation_id TEXT,
    replay_id TEXT,
    status TEXT NOT NULL DEFAULT 'pending',
    trigger TEXT NOT NULL DEFAULT 'scheduled',
    attempt_count INTEGER NOT NULL DEFAULT 0,
    due_at INTEGER,
    -- Attempts that a person asked for are not part of the schedule: how many were made, and when the
    -- next one of the schedule is due while one of them is awaited.
    manual_count INTEGER NOT NULL DEFAULT 0,
    planned_at INTEGER,
    delivered_at INTEGER,
    last_error TEXT,
    PRIMARY KEY (tenant, id)
) WITHOUT ROWID;
-- First attempts and retries are read separately: many due retries must not delay first attempts.
-- `status` is the same in all of it, but a count needs it: else each row would be looked up.
CREATE INDEX deliveries_due ON deliveries (subscriber_id, (attempt_count > 0), due_at, status)
    WHERE status = 'pending';
-- What a person asked for leaves while others wait.
CREATE INDEX deliveries_asked ON deliveries (subscriber_id, due_at)
    WHERE status = 'pending' AND trigger = 'manual';
CREATE INDEX deliveries_event ON deliveries (event_id);
CREATE INDEX deliveries_subscriber ON deliveries (subscriber_id, id);
-- Dead and canceled deliveries of a tenant, and of a subscriber.
CREATE INDEX deliveries_ended ON deliveries (tenant, status, id)
    WHERE status IN ('dead', 'canceled');
CREATE INDEX deliveries_ended_of ON deliveries (subscriber_id, status, id)
    WHERE status IN ('dead', 'canceled');
CREATE INDEX deliveries_replay ON deliveries (replay_id, (attempt_count > 0))
    WHERE status = 'pending' AND replay_id IS NOT NULL;

-- Counts of attempts by subscriber, slot of five minutes, bucket of duration, and the delivery's
-- status after the attempt (see store/stats.py).
CREATE TABLE attempt_latency (
    subscriber_id TEXT NOT NULL,
    slot_at INTEGER NOT NULL,
    bucket INTEGER NOT NULL,
    status TEXT NOT NULL,
    count INTEGER NOT NULL,
    last_at INTEGER NOT NULL,
    PRIMARY KEY (subscriber_id, slot_at, bucket, status)
) WITHOUT ROWID;
CREATE INDEX attempt_latency_slot ON attempt_latency (slot_at);

CREATE TABLE replays (
    id TEXT PRIMARY KEY,
    tenant TEXT NOT NULL,
    subscriber_id TEXT NOT NULL,
    since_at INTEGER NOT NULL,
    until_at INTEGER NOT NULL,
    event_types TEXT NOT NULL,
    only_dead INTEGER NOT NULL,
    rate_per_second REAL,
    dry_run INTEGER NOT NULL,
    status TEXT NOT NULL,
    total INTEGER NOT NULL,
    done INTEGER NOT NULL DEFAULT 0,
    cursor INTEGER NOT NULL,
    last_seq INTEGER NOT NULL,
    due_at INTEGER,
    created_at INTEGER NOT NULL,
    finished_at INTEGER
) WITHOUT ROWID;
CREATE INDEX replays_tenant ON replays (tenant, id);
CREATE INDEX replays_due ON replays (due_at) WHERE due_at IS NOT NULL;
CREATE UNIQUE INDEX replays_running ON replays (subscriber_id) WHERE status = 'running';

-- Numbers that outlive a process: one that grows with changes of subscribers or secrets, so that
-- processes reload them; until when upstream asked for no requests; when the next poll may be sent.
-- A process that finds out whether it can commit inserts a row, and deletes it.
CREATE TABLE revisions (
    noun TEXT PRIMARY KEY,
    number INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO revisions (noun, number) VALUES ('subscribers', 0);

-- What the latest of these changes were about: a subscriber, all that a tenant has, or everything.
CREATE TABLE subscriber_changes (
    number INTEGER PRIMARY KEY,
    tenant TEXT,
    subscriber_id TEXT
);

CREATE TABLE attempts (
    delivery_id TEXT NOT NULL,
    number INTEGER NOT NULL,
    id TEXT NOT NULL,
    trigger TEXT NOT NULL,
    started_at INTEGER NOT NULL,
    duration_ms INTEGER NOT NULL,
    status_code INTEGER,
    error_code TEXT,
    error_message TEXT,
    response_headers TEXT NOT NULL,
    response_body BLOB NOT NULL,
    PRIMARY KEY (delivery_id, number)
) WITHOUT ROWID;

CREATE TABLE usage (
    tenant TEXT NOT NULL,
    day TEXT NOT NULL,
    model TEXT NOT NULL,
    generations INTEGER NOT NULL DEFAULT 0,
    succeeded INTEGER NOT NULL DEFAULT 0,
    failed INTEGER NOT NULL DEFAULT 0,
    timed_out INTEGER NOT NULL DEFAULT 0,
    canceled INTEGER NOT NULL DEFAULT 0,
    credits INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (tenant, day, model)
) WITHOUT ROWID;
