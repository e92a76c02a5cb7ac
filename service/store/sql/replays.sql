-- name: replay_insert
INSERT INTO replays (id, tenant, subscriber_id, since_at, until_at, event_types, only_dead,
    rate_per_second, dry_run, status, total, done, cursor, last_seq, due_at, created_at,
    finished_at)
VALUES (:id, :tenant, :subscriber_id, :since_at, :until_at, :event_types, :only_dead,
    :rate_per_second, :dry_run, :status, :total, :done, :cursor, :last_seq, :due_at, :created_at,
    :finished_at);

-- name: replay_by_id
SELECT * FROM replays WHERE id = :id;
-- lock: replays

-- name: replay_running
SELECT id FROM replays WHERE subscriber_id = :subscriber_id AND status = 'running';

-- name: replay_end
UPDATE replays SET status = 'canceled', due_at = :now, finished_at = :now
WHERE subscriber_id = :subscriber_id AND status = 'running';

-- name: replay_update
UPDATE replays SET status = :status, total = :total, done = :done, cursor = :cursor, due_at = :due_at,
    finished_at = :finished_at
WHERE id = :id;

-- name: replay_delay
UPDATE replays SET due_at = :due_at WHERE id = :id AND {unindexed due_at} IS NOT NULL;

-- name: replays_due
-- The work of a replay is that of its subscriber's shard.
SELECT id FROM replays WHERE due_at <= :now {held_id subscriber_id} ORDER BY due_at LIMIT :limit;

-- name: replay_next_due
SELECT min(due_at) AS due_at FROM replays WHERE due_at IS NOT NULL {held_id subscriber_id};

-- name: replay_seq_before
-- The seq of the last event before a time. That of the first event since then would not do: it may
-- have been committed after others that are younger, and these would be skipped.
SELECT seq FROM events WHERE id < :first_id AND seq IS NOT NULL ORDER BY id DESC LIMIT 1;

-- name: replay_last_seq
SELECT max(seq) AS seq FROM events;

-- name: replay_span_end
-- The last seq among the next events of the tenant, unless all their ids are too late.
SELECT CASE WHEN min(id) < :until_id THEN max(seq) END AS last_seq FROM (
    SELECT seq, id FROM events
    WHERE tenant = :tenant AND seq > :cursor AND seq <= :last_seq ORDER BY seq LIMIT :limit) few;

-- name: replay_matches
-- The seqs of the events that a replay sends again. An event whose latest delivery is pending is left
-- out; canceled deliveries are ignored.
SELECT e.seq FROM events e
WHERE e.tenant = :tenant AND e.seq > :cursor AND e.seq <= :last_seq
    AND e.id >= :since_id AND e.id < :until_id
    AND e.type IN (SELECT value FROM {rows}(:event_types))
    AND CASE (SELECT d.status FROM deliveries d {index deliveries_event}
            WHERE d.event_id = e.id AND d.subscriber_id = :subscriber_id
                AND d.status <> 'canceled'
            ORDER BY d.id DESC LIMIT 1)
        WHEN 'dead' THEN TRUE WHEN 'pending' THEN FALSE ELSE NOT :only_dead END
    AND (:unfiltered OR e.generation_id IS NULL OR EXISTS (SELECT 1 FROM generations g
        WHERE g.id = e.generation_id
            AND (:models = '[]' OR g.model IN (SELECT value FROM {rows}(:models)))
            AND NOT EXISTS (SELECT 1 FROM {pairs}(CAST(:metadata AS {json})) pair
                WHERE NOT EXISTS (SELECT 1 FROM generation_metadata m
                    WHERE m.tenant = e.tenant AND m.name = pair.key
                        AND m.value = pair.value AND m.generation_id = g.id {each}) {each}) {each}))
ORDER BY e.seq LIMIT :limit;

-- name: replay_events
-- :seqs is a JSON list.
SELECT e.* FROM {rows}(:seqs) s {ordered} JOIN events e ON e.seq = CAST(s.value AS BIGINT)
WHERE {unindexed e.tenant} = :tenant {sorted e.id};
-- lock: e

-- name: replay_count_untried
-- How many deliveries of a replay wait for their first attempt, counted up to :limit.
SELECT count(*) AS count FROM (SELECT 1 FROM deliveries {index deliveries_replay}
    WHERE status = 'pending' AND replay_id = :id AND {is_tried attempt_count} = 0 LIMIT :limit) few;

-- name: replay_deliveries_insert
INSERT INTO deliveries (tenant, id, subscriber_id, event_id, event_type, generation_id, replay_id,
    trigger, due_at)
VALUES (:tenant, :id, :subscriber_id, :event_id, :event_type, :generation_id, :replay_id,
    'replay', :due_at);

-- name: replay_deliveries_cancel
UPDATE deliveries SET status = 'canceled', due_at = NULL
WHERE (tenant, id) IN (SELECT d.tenant, d.id FROM deliveries d {index deliveries_replay}
    WHERE d.status = 'pending' AND d.replay_id = :id AND d.replay_id IS NOT NULL LIMIT :limit);

-- name: replays_delete_old
DELETE FROM replays WHERE id IN (SELECT id FROM replays
    WHERE id < :before_id AND due_at IS NULL ORDER BY id LIMIT :limit);
