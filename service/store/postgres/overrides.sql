-- name: usage_add
-- All that end a generation of a model on a day would change one row, and wait for each other: so
-- each adds a row of its own. usage_fold adds them up.
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

-- name: callbacks_generation_states
-- Whether there were other callbacks is not known before the generations are locked.
SELECT p.key AS position, g.id, g.tenant, g.status, g.nonce, g.last_poll_at, TRUE AS has_others
FROM json_rows(:ids) p JOIN generations g ON g.id = p.value ORDER BY g.id;
-- lock: g

-- name: callbacks_kept
-- LATERAL: while there are few bodies, it would rather read all of them.
SELECT p.value AS generation_id, kept.* FROM json_rows(:ids) p CROSS JOIN LATERAL (
    SELECT count(*) AS count, CAST(sum(length(b.headers) + length(b.body)) AS BIGINT) AS size,
        CAST(json_agg(b.body_digest) AS TEXT) AS digests
    FROM callback_bodies b WHERE b.generation_id = p.value AND b.body_digest > '') kept
WHERE kept.count > 0;

-- name: deliveries_cancel
-- Rows of several deliveries are locked in the order of their ids.
UPDATE deliveries SET status = 'canceled', due_at = NULL
WHERE (tenant, id) IN (SELECT p.tenant, p.id FROM deliveries p
    WHERE p.status = 'pending' AND (p.tenant, p.id) IN (SELECT d.tenant, d.id FROM deliveries d
        WHERE d.status = 'pending' AND d.subscriber_id = :subscriber_id LIMIT :limit)
    ORDER BY p.id FOR UPDATE);

-- name: replay_deliveries_cancel
UPDATE deliveries SET status = 'canceled', due_at = NULL
WHERE (tenant, id) IN (SELECT p.tenant, p.id FROM deliveries p
    WHERE p.status = 'pending' AND (p.tenant, p.id) IN (SELECT d.tenant, d.id FROM deliveries d
        WHERE d.status = 'pending' AND d.replay_id = :id AND d.replay_id IS NOT NULL LIMIT :limit)
    ORDER BY p.id FOR UPDATE);

-- name: generations_to_submit
-- LATERAL: before version 17, `IN` of a query for each tenant would look at every generation.
{tenants submit_at}
SELECT g.*, b.input, b.metadata, b.output, b.error
FROM (SELECT due.id, tenants.tenant,
        row_number() OVER (PARTITION BY tenants.tenant ORDER BY due.submit_at) AS place_in_tenant
    FROM tenants CROSS JOIN LATERAL (
        SELECT g.id, g.submit_at FROM generations g
        WHERE g.tenant = tenants.tenant AND g.submit_at IS NOT NULL AND g.submit_at <= :now
            AND g.submission = 'waiting' AND g.task_id IS NULL
            AND {is_free}
        ORDER BY g.submit_at LIMIT :limit) due
    WHERE tenants.tenant NOT IN (SELECT value FROM json_rows(:tenants))
    ORDER BY place_in_tenant, tenants.tenant <= :after, tenants.tenant LIMIT :limit) q
JOIN generations g ON g.id = q.id
LEFT JOIN generation_bodies b ON b.generation_id = g.id
ORDER BY q.place_in_tenant, q.tenant <= :after, q.tenant;

-- name: generations_to_poll
{tenants next_poll_at}
SELECT g.*, b.input, b.metadata, b.output, b.error, {shared}
FROM (SELECT due.id, tenants.tenant, row_number() OVER (
            PARTITION BY tenants.tenant ORDER BY due.is_late DESC, due.next_poll_at) AS place_in_tenant
    FROM tenants CROSS JOIN LATERAL (
        SELECT longest.*,
            longest.status IN ('queued', 'processing') AND longest.deadline_at <= :now AS is_late
        FROM (
            SELECT g.id, g.status, g.deadline_at, g.next_poll_at FROM generations g
            WHERE g.tenant = tenants.tenant
                AND g.next_poll_at IS NOT NULL AND g.next_poll_at <= :now {held g}
                AND g.id NOT IN (SELECT value FROM json_rows(:without))
                AND {has_place}
            ORDER BY g.next_poll_at LIMIT :searched) longest
        ORDER BY is_late DESC, longest.next_poll_at LIMIT :limit) due
    WHERE tenants.tenant NOT IN (SELECT value FROM json_rows(:tenants))
    ORDER BY place_in_tenant, tenants.tenant <= :after, tenants.tenant LIMIT :limit) q
JOIN generations g ON g.id = q.id
LEFT JOIN generation_bodies b ON b.generation_id = g.id
ORDER BY q.place_in_tenant, q.tenant <= :after, q.tenant;
