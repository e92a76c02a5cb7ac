-- name: callbacks_kept
SELECT p.value AS generation_id, count(*) AS count,
    CAST(sum(length(b.headers) + length(b.body)) AS BIGINT) AS size,
    CAST(json_agg(b.body_digest) AS TEXT) AS digests
FROM json_rows(:ids) p JOIN callback_bodies b ON b.generation_id = p.value AND b.body_digest > ''
GROUP BY p.value;

-- name: event_insert
INSERT INTO events (id, tenant, type, generation_id, body)
VALUES (:id, :tenant, :type, :generation_id, :body);

-- name: usage_add
-- Two transactions that change one row cannot both be committed, and all that end a generation of a
-- model on a day would change the same: each adds a row of its own. usage_fold adds them up.
INSERT INTO usage_added (tenant, day, model, id, generations, succeeded, failed, timed_out,
    canceled, credits)
VALUES (:tenant, :day, :model, gen_random_uuid(), :generations, :succeeded, :failed, :timed_out,
    :canceled, :credits);

-- name: usage_fold
WITH added AS (
    DELETE FROM usage_added WHERE (tenant, day, model, id) IN (
        SELECT tenant, day, model, id FROM usage_added
        ORDER BY tenant, day, model, id LIMIT :limit)
    RETURNING *
), folded AS (
    INSERT INTO usage (tenant, day, model, generations, succeeded, failed, timed_out, canceled,
        credits)
    SELECT tenant, day, model, sum(generations), sum(succeeded), sum(failed), sum(timed_out),
        sum(canceled), sum(credits)
    FROM added GROUP BY tenant, day, model
    ON CONFLICT (tenant, day, model) DO UPDATE SET
        generations = usage.generations + excluded.generations,
        succeeded = usage.succeeded + excluded.succeeded, failed = usage.failed + excluded.failed,
        timed_out = usage.timed_out + excluded.timed_out,
        canceled = usage.canceled + excluded.canceled, credits = usage.credits + excluded.credits
)
SELECT count(*) AS count FROM added;

-- name: usage_list
SELECT day, model, CAST(sum(generations) AS BIGINT) AS generations,
    CAST(sum(succeeded) AS BIGINT) AS succeeded, CAST(sum(failed) AS BIGINT) AS failed,
    CAST(sum(timed_out) AS BIGINT) AS timed_out, CAST(sum(canceled) AS BIGINT) AS canceled,
    CAST(sum(credits) AS BIGINT) AS credits
FROM (
    SELECT day, model, generations, succeeded, failed, timed_out, canceled, credits FROM usage
    WHERE tenant = :tenant AND day >= :since AND day <= :until
    UNION ALL
    SELECT day, model, generations, succeeded, failed, timed_out, canceled, credits
    FROM usage_added WHERE tenant = :tenant AND day >= :since AND day <= :until) parts
WHERE model = coalesce(:model, model)
GROUP BY day, model ORDER BY day DESC, model LIMIT 10000;

-- name: replay_matches
-- The seqs of the events that a replay sends again. An event whose latest delivery is pending is left
-- out; canceled deliveries are ignored.
SELECT e.seq FROM events e
WHERE e.tenant = :tenant AND e.seq > :cursor AND e.seq <= :last_seq
    AND e.id >= :since_id AND e.id < :until_id
    AND e.type IN (SELECT value FROM json_rows(:event_types))
    AND CASE (SELECT d.status FROM deliveries d
            WHERE d.event_id = e.id AND d.subscriber_id = :subscriber_id
                AND d.status <> 'canceled'
            ORDER BY d.id DESC LIMIT 1)
        WHEN 'dead' THEN TRUE WHEN 'pending' THEN FALSE ELSE NOT :only_dead END
    AND (:unfiltered OR e.generation_id IS NULL OR EXISTS (SELECT 1 FROM generations g
        WHERE g.id = e.generation_id
            AND (:models = '[]' OR g.model IN (SELECT value FROM json_rows(:models)))
            AND NOT EXISTS (SELECT 1 FROM jsonb_each_text(CAST(:metadata AS JSONB)) pair
                WHERE NOT EXISTS (SELECT 1 FROM generation_metadata m
                    WHERE m.tenant = e.tenant AND m.name = pair.key
                        AND m.value = pair.value AND m.generation_id = g.id {each}) {each}) {each}))
ORDER BY e.seq LIMIT :limit;

-- name: generations_old
SELECT g.id, g.tenant, g.status IN ('succeeded', 'failed', 'timed_out', 'canceled')
    AND is_json(g.event_ids)
    AND g.next_poll_at IS NULL AND g.completed_at < :before AND g.deadline_at < :deadline_before
    AND NOT EXISTS (SELECT 1 FROM confirmations q WHERE q.generation_id = g.id {each})
    AND NOT EXISTS (SELECT 1 FROM json_rows(
            CASE WHEN is_json(g.event_ids) THEN g.event_ids ELSE '[]' END) i
        JOIN events e ON e.id = i.value {each})
        AS is_deletable
FROM generations g WHERE g.id > :after AND g.id < :before_id ORDER BY g.id LIMIT :limit;

-- name: generation_metadata_delete
DELETE FROM generation_metadata WHERE (tenant, name, value, generation_id) IN (
    SELECT :tenant, m.key, m.value, :id
    FROM generation_bodies b, jsonb_each_text(CAST(
        CASE WHEN is_json(b.metadata) THEN b.metadata ELSE '{}' END AS JSONB)) m
    WHERE b.generation_id = :id);

-- name: generations_to_submit
{tenants submit_at}
SELECT g.*, b.input, b.metadata, b.output, b.error
FROM (SELECT g.id, g.tenant,
        row_number() OVER (PARTITION BY tenants.tenant ORDER BY g.submit_at) AS turn
    FROM tenants JOIN generations g ON g.id IN (
        SELECT g.id FROM generations g
        WHERE g.tenant = tenants.tenant AND g.submit_at IS NOT NULL AND g.submit_at <= :now
            AND g.submission = 'waiting' AND g.task_id IS NULL
            AND NOT EXISTS (SELECT 1 FROM confirmations q WHERE q.generation_id = g.id)
            AND g.id NOT IN (SELECT value FROM json_rows(:without)) {held g}
        ORDER BY g.submit_at LIMIT :limit)
    WHERE tenants.tenant NOT IN (SELECT value FROM json_rows(:tenants))
    ORDER BY turn, g.tenant <= :after, g.tenant LIMIT :limit) q
JOIN generations g ON g.id = q.id
LEFT JOIN generation_bodies b ON b.generation_id = g.id
ORDER BY q.turn, q.tenant <= :after, q.tenant;

-- part: shared
EXISTS (SELECT 1 FROM generations s WHERE s.task_id = g.task_id AND s.id <> g.id {each})
    AS is_shared

-- name: generations_to_poll
{tenants next_poll_at}
SELECT g.*, b.input, b.metadata, b.output, b.error, {shared}
FROM (SELECT g.id, g.tenant, row_number() OVER (PARTITION BY tenants.tenant
            ORDER BY g.status IN ('queued', 'processing') AND g.deadline_at <= :now DESC,
                g.next_poll_at) AS turn
    FROM tenants JOIN generations g ON g.id IN (
        SELECT due.id FROM (
            SELECT g.id, g.status, g.deadline_at, g.next_poll_at FROM generations g
            WHERE g.tenant = tenants.tenant
                AND g.next_poll_at IS NOT NULL AND g.next_poll_at <= :now {held g}
                AND g.id NOT IN (SELECT value FROM json_rows(:without))
                AND CASE WHEN g.model IN (SELECT value FROM json_rows(:apart))
                    THEN g.model ELSE '' END
                    || ' ' || g.tenant NOT IN (SELECT value FROM json_rows(:full))
                AND CASE WHEN g.model IN (SELECT value FROM json_rows(:apart))
                    THEN g.model ELSE '' END
                    || ' ' NOT IN (SELECT value FROM json_rows(:full))
            ORDER BY g.next_poll_at LIMIT :look) due
        ORDER BY due.status IN ('queued', 'processing') AND due.deadline_at <= :now DESC,
            due.next_poll_at LIMIT :limit)
    WHERE tenants.tenant NOT IN (SELECT value FROM json_rows(:tenants))
    ORDER BY turn, g.tenant <= :after, g.tenant LIMIT :limit) q
JOIN generations g ON g.id = q.id
LEFT JOIN generation_bodies b ON b.generation_id = g.id
ORDER BY q.turn, q.tenant <= :after, q.tenant;
