-- Times are integers of milliseconds since the epoch. JSON is text. Ids sort by time, and the id of a
-- generation, callback, event or delivery contains the time of its creation.
-- Text is compared by its bytes, as SQLite does. Columns named sealed_* are encrypted under a key derived from GENHOOK_SECRET_KEYS.
-- Every index costs a write for each row: docs/performance.md has the budget of each operation.

-- The shard of a subscriber or a generation: CRC-32, as store/shards.py has it, half a byte at a time.
CREATE FUNCTION shard_of(id TEXT) RETURNS SMALLINT
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    halves CONSTANT BIGINT[] := ARRAY[0, 498536548, 997073096, 651767980, 1994146192, 1802195444,
        1303535960, 1342533948, 3988292384, 4027552580, 3604390888, 3412177804, 2607071920,
        2262029012, 2685067896, 3183342108];
    bytes CONSTANT BYTEA := convert_to(id, 'UTF8');
    crc BIGINT := 4294967295;
BEGIN
    FOR n IN 0 .. length(bytes) - 1 LOOP
        crc := crc # get_byte(bytes, n);
        crc := (crc >> 4) # halves[(crc & 15) + 1];
        crc := (crc >> 4) # halves[(crc & 15) + 1];
    END LOOP;
    RETURN (crc # 4294967295) & 63;
END $$;

CREATE TABLE tenants (
    id TEXT COLLATE "C" PRIMARY KEY,
    sealed_secrets BYTEA NOT NULL,
    created_at BIGINT NOT NULL
);

CREATE TABLE keys (
    id TEXT COLLATE "C" PRIMARY KEY,
    tenant TEXT COLLATE "C" NOT NULL,
    name TEXT COLLATE "C" NOT NULL,
    key_sha256 BYTEA NOT NULL UNIQUE,
    scopes TEXT COLLATE "C" NOT NULL,
    created_at BIGINT NOT NULL,
    last_used_at BIGINT,
    revoked_at BIGINT
);
CREATE INDEX keys_tenant ON keys (tenant, id);

-- Who is signed in to the pages. The cookie has the id; the key is named by the digest that it has in
-- `keys`, so that it ends every sign-in when it is revoked.
CREATE TABLE sign_ins (
    id_sha256 BYTEA PRIMARY KEY,
    key_sha256 BYTEA NOT NULL,
    expires_at BIGINT NOT NULL
);
CREATE INDEX sign_ins_key ON sign_ins (key_sha256, expires_at);
CREATE INDEX sign_ins_expires ON sign_ins (expires_at);

CREATE TABLE idempotency (
    tenant TEXT COLLATE "C" NOT NULL,
    key TEXT COLLATE "C" NOT NULL,
    request_sha256 BYTEA NOT NULL,
    resource_id TEXT COLLATE "C" NOT NULL,
    status_code BIGINT,
    sealed_answer BYTEA,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (tenant, key)
);
CREATE INDEX idempotency_created ON idempotency (created_at);

CREATE TABLE generations (
    id TEXT COLLATE "C" PRIMARY KEY,
    tenant TEXT COLLATE "C" NOT NULL,
    model TEXT COLLATE "C" NOT NULL,
    status TEXT COLLATE "C" NOT NULL,
    route TEXT COLLATE "C" NOT NULL,
    notify_url TEXT COLLATE "C",
    notify_subscriber_id TEXT COLLATE "C",
    retry_of TEXT COLLATE "C",
    task_id TEXT COLLATE "C",
    credits BIGINT,
    submitted_at BIGINT,
    completed_at BIGINT,
    deadline_at BIGINT NOT NULL,
    nonce TEXT COLLATE "C" NOT NULL,
    submission TEXT COLLATE "C" NOT NULL,
    submit_at BIGINT,
    submit_count BIGINT NOT NULL DEFAULT 0,
    next_poll_at BIGINT,
    poll_count BIGINT NOT NULL DEFAULT 0,
    trouble_count BIGINT NOT NULL DEFAULT 0,
    late_poll_count BIGINT NOT NULL DEFAULT 0,
    last_poll_at BIGINT,
    -- The ids of its events in order, as JSON: there are few, and an index would cost every event.
    event_ids TEXT COLLATE "C" NOT NULL DEFAULT '[]',
    shard SMALLINT GENERATED ALWAYS AS (shard_of(id)) STORED
);
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
    task_id TEXT COLLATE "C" PRIMARY KEY,
    generation_id TEXT COLLATE "C" NOT NULL,
    is_revoked BIGINT NOT NULL DEFAULT 0
);
CREATE INDEX task_names_generation ON task_names (generation_id);

-- The queue of confirmations. In a table of its own, so that a callback need not update generations.
CREATE TABLE confirmations (
    generation_id TEXT COLLATE "C" PRIMARY KEY,
    due_at BIGINT NOT NULL
);

-- The large columns of a generation, apart from those that are searched and updated often.
CREATE TABLE generation_bodies (
    generation_id TEXT COLLATE "C" PRIMARY KEY,
    input TEXT COLLATE "C" NOT NULL,
    metadata TEXT COLLATE "C" NOT NULL,
    output TEXT COLLATE "C",
    error TEXT COLLATE "C"
);

CREATE TABLE generation_metadata (
    tenant TEXT COLLATE "C" NOT NULL,
    name TEXT COLLATE "C" NOT NULL,
    value TEXT COLLATE "C" NOT NULL,
    generation_id TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (tenant, name, value, generation_id)
);

-- Submissions and polls of a generation with their answers, for its timeline.
CREATE TABLE exchanges (
    generation_id TEXT COLLATE "C" NOT NULL,
    kind TEXT COLLATE "C" NOT NULL,
    number BIGINT NOT NULL,
    at BIGINT NOT NULL,
    duration_ms BIGINT NOT NULL,
    status_code BIGINT,
    outcome TEXT COLLATE "C" NOT NULL,
    detail TEXT COLLATE "C",
    PRIMARY KEY (generation_id, kind, number)
);

-- tenant is '' if the callback has no valid token.
CREATE TABLE callbacks (
    tenant TEXT COLLATE "C" NOT NULL,
    id TEXT COLLATE "C" NOT NULL,
    generation_id TEXT COLLATE "C" NOT NULL,
    upstream TEXT COLLATE "C" NOT NULL,
    verdict TEXT COLLATE "C" NOT NULL,
    reason TEXT COLLATE "C",
    trust TEXT COLLATE "C",
    body_digest TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (tenant, id)
);
CREATE INDEX callbacks_rejected ON callbacks (id) WHERE verdict = 'rejected';

-- The key begins with the generation, so that it also answers which callbacks a generation has and
-- whether a body is repeated.
CREATE TABLE callback_bodies (
    generation_id TEXT COLLATE "C" NOT NULL,
    body_digest TEXT COLLATE "C" NOT NULL,
    callback_id TEXT COLLATE "C" NOT NULL,
    headers BYTEA NOT NULL,
    body BYTEA NOT NULL,
    PRIMARY KEY (generation_id, body_digest, callback_id)
);

-- A sequence is no order of commits: an event gets its seq after its commit, from whoever next needs
-- the order. Cursors of lists are ids, and the cursor of a deleted event stands for the one before it.
CREATE TABLE events (
    id TEXT COLLATE "C" PRIMARY KEY,
    seq BIGINT UNIQUE,
    tenant TEXT COLLATE "C" NOT NULL,
    type TEXT COLLATE "C" NOT NULL,
    generation_id TEXT COLLATE "C",
    body BYTEA NOT NULL
);
CREATE INDEX events_tenant ON events (tenant, seq, type);
CREATE INDEX events_unordered ON events (id) WHERE seq IS NULL;

CREATE TABLE subscribers (
    id TEXT COLLATE "C" PRIMARY KEY,
    tenant TEXT COLLATE "C" NOT NULL,
    is_notify BIGINT NOT NULL DEFAULT 0,
    url TEXT COLLATE "C" NOT NULL,
    description TEXT COLLATE "C" NOT NULL DEFAULT '',
    event_types TEXT COLLATE "C" NOT NULL DEFAULT '[]',
    filter TEXT COLLATE "C" NOT NULL DEFAULT '{}',
    header_names TEXT COLLATE "C" NOT NULL DEFAULT '[]',
    sealed_headers BYTEA,
    sealed_secrets BYTEA,
    status TEXT COLLATE "C" NOT NULL DEFAULT 'active',
    disabled_reason TEXT COLLATE "C",
    max_in_flight BIGINT NOT NULL,
    rate_per_second DOUBLE PRECISION,
    retry_schedule_seconds TEXT COLLATE "C" NOT NULL,
    ordered BIGINT NOT NULL DEFAULT 0,
    payload TEXT COLLATE "C" NOT NULL DEFAULT 'full',
    signature TEXT COLLATE "C" NOT NULL DEFAULT 'v1',
    failing_since BIGINT,
    last_failed_at BIGINT,
    probing BIGINT NOT NULL DEFAULT 0,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);
CREATE INDEX subscribers_tenant ON subscribers (tenant, id) WHERE is_notify = 0;
CREATE UNIQUE INDEX subscribers_notify ON subscribers (tenant, url) WHERE is_notify = 1;

-- Until when a receiver asked lanes of a tenant to rest. `receiver` is the origin for all lanes there;
-- the origin and `notify` for its `notify_url`s, the origin and a subscriber's id for one lane alone.
CREATE TABLE rests (
    tenant TEXT COLLATE "C" NOT NULL,
    receiver TEXT COLLATE "C" NOT NULL,
    slow_until BIGINT NOT NULL,
    asked_at BIGINT NOT NULL,
    PRIMARY KEY (tenant, receiver)
);
CREATE INDEX rests_until ON rests (slow_until);

CREATE TABLE deliveries (
    tenant TEXT COLLATE "C" NOT NULL,
    id TEXT COLLATE "C" NOT NULL,
    subscriber_id TEXT COLLATE "C" NOT NULL,
    event_id TEXT COLLATE "C" NOT NULL,
    event_type TEXT COLLATE "C" NOT NULL,
    generation_id TEXT COLLATE "C",
    replay_id TEXT COLLATE "C",
    status TEXT COLLATE "C" NOT NULL DEFAULT 'pending',
    trigger TEXT COLLATE "C" NOT NULL DEFAULT 'scheduled',
    attempt_count BIGINT NOT NULL DEFAULT 0,
    due_at BIGINT,
    -- Attempts that a person asked for are not part of the schedule: how many were made, and when the
    -- next one of the schedule is due while one of them is awaited.
    manual_count BIGINT NOT NULL DEFAULT 0,
    planned_at BIGINT,
    delivered_at BIGINT,
    last_error TEXT COLLATE "C",
    PRIMARY KEY (tenant, id)
);
-- First attempts and retries are read separately: many due retries must not delay first attempts.
CREATE INDEX deliveries_due ON deliveries (subscriber_id, LEAST(attempt_count, 1), due_at)
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
CREATE INDEX deliveries_replay ON deliveries (replay_id, LEAST(attempt_count, 1))
    WHERE status = 'pending' AND replay_id IS NOT NULL;

-- Counts of attempts by subscriber, slot of five minutes, bucket of duration, and the delivery's
-- status after the attempt (see store/stats.py).
CREATE TABLE attempt_latency (
    subscriber_id TEXT COLLATE "C" NOT NULL,
    slot_at BIGINT NOT NULL,
    bucket BIGINT NOT NULL,
    status TEXT COLLATE "C" NOT NULL,
    count BIGINT NOT NULL,
    last_at BIGINT NOT NULL,
    PRIMARY KEY (subscriber_id, slot_at, bucket, status)
);
CREATE INDEX attempt_latency_slot ON attempt_latency (slot_at);

CREATE TABLE replays (
    id TEXT COLLATE "C" PRIMARY KEY,
    tenant TEXT COLLATE "C" NOT NULL,
    subscriber_id TEXT COLLATE "C" NOT NULL,
    since_at BIGINT NOT NULL,
    until_at BIGINT NOT NULL,
    event_types TEXT COLLATE "C" NOT NULL,
    only_dead BIGINT NOT NULL,
    rate_per_second DOUBLE PRECISION,
    dry_run BIGINT NOT NULL,
    status TEXT COLLATE "C" NOT NULL,
    total BIGINT NOT NULL,
    done BIGINT NOT NULL DEFAULT 0,
    cursor BIGINT NOT NULL,
    last_seq BIGINT NOT NULL,
    due_at BIGINT,
    created_at BIGINT NOT NULL,
    finished_at BIGINT
);
CREATE INDEX replays_tenant ON replays (tenant, id);
CREATE INDEX replays_due ON replays (due_at) WHERE due_at IS NOT NULL;
CREATE UNIQUE INDEX replays_running ON replays (subscriber_id) WHERE status = 'running';

-- Numbers that outlive a process: one that grows with changes of subscribers or secrets, so that
-- processes reload them; until when upstream asked for no requests; when the next poll may be sent.
-- A process that finds out whether it can commit inserts a row, and deletes it.
CREATE TABLE revisions (
    noun TEXT COLLATE "C" PRIMARY KEY,
    number BIGINT NOT NULL
);
INSERT INTO revisions (noun, number) VALUES ('subscribers', 0);

-- What the latest of these changes were about: a subscriber, all that a tenant has, or everything.
CREATE TABLE subscriber_changes (
    number BIGINT PRIMARY KEY,
    tenant TEXT COLLATE "C",
    subscriber_id TEXT COLLATE "C"
);

CREATE TABLE attempts (
    delivery_id TEXT COLLATE "C" NOT NULL,
    number BIGINT NOT NULL,
    id TEXT COLLATE "C" NOT NULL,
    trigger TEXT COLLATE "C" NOT NULL,
    started_at BIGINT NOT NULL,
    duration_ms BIGINT NOT NULL,
    status_code BIGINT,
    error_code TEXT COLLATE "C",
    error_message TEXT COLLATE "C",
    response_headers TEXT COLLATE "C" NOT NULL,
    response_body BYTEA NOT NULL,
    PRIMARY KEY (delivery_id, number)
);

CREATE TABLE usage (
    tenant TEXT COLLATE "C" NOT NULL,
    day TEXT COLLATE "C" NOT NULL,
    model TEXT COLLATE "C" NOT NULL,
    generations BIGINT NOT NULL DEFAULT 0,
    succeeded BIGINT NOT NULL DEFAULT 0,
    failed BIGINT NOT NULL DEFAULT 0,
    timed_out BIGINT NOT NULL DEFAULT 0,
    canceled BIGINT NOT NULL DEFAULT 0,
    credits BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (tenant, day, model)
);

-- What transactions have added to the usage, until usage_fold adds it up there.
CREATE TABLE usage_added (
    tenant TEXT COLLATE "C" NOT NULL,
    day TEXT COLLATE "C" NOT NULL,
    model TEXT COLLATE "C" NOT NULL,
    id UUID NOT NULL,
    generations BIGINT NOT NULL,
    succeeded BIGINT NOT NULL,
    failed BIGINT NOT NULL,
    timed_out BIGINT NOT NULL,
    canceled BIGINT NOT NULL,
    credits BIGINT NOT NULL,
    PRIMARY KEY (tenant, day, model, id)
);

-- The elements of a JSON list, as SQLite's json_each has them. PostgreSQL expects ten elements of an
-- array that it does not know, but a hundred of a JSON list: then it would rather read a whole index
-- than look up each.
CREATE FUNCTION json_rows (list TEXT) RETURNS TABLE (key BIGINT, value TEXT)
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT ordinality - 1, element
    FROM unnest(ARRAY(SELECT jsonb_array_elements_text(list::jsonb)))
        WITH ORDINALITY AS e (element, ordinality)
$$;

-- Whether a text is JSON. pg_input_is_valid says that from PostgreSQL 16 on.
CREATE FUNCTION is_json (text TEXT) RETURNS BOOLEAN
LANGUAGE plpgsql IMMUTABLE STRICT AS $$
BEGIN
    PERFORM text::jsonb;
    RETURN TRUE;
EXCEPTION WHEN data_exception THEN
    RETURN FALSE;
END $$;
