-- name: stats_counts
-- Pending, dead and lately canceled deliveries of a subscriber, each counted up to :limit.
SELECT * FROM
    (SELECT count(*) AS pending FROM (SELECT 1 FROM deliveries {index deliveries_due}
        WHERE status = 'pending' AND subscriber_id = :subscriber_id LIMIT :limit) few) few_pending,
    (SELECT count(*) AS dead FROM (SELECT 1 FROM deliveries {index deliveries_ended_of}
        WHERE status IN ('dead', 'canceled') AND status = 'dead'
            AND subscriber_id = :subscriber_id LIMIT :limit) few) few_dead,
    (SELECT count(*) AS canceled FROM (SELECT 1 FROM deliveries {index deliveries_ended_of}
        WHERE status IN ('dead', 'canceled') AND status = 'canceled'
            AND subscriber_id = :subscriber_id AND id >= :since_id LIMIT :limit) few) few_canceled;

-- name: stats_attempts
SELECT bucket, status, CAST(sum(count) AS BIGINT) AS count FROM attempt_latency
WHERE subscriber_id = :subscriber_id AND slot_at > :since_at GROUP BY bucket, status;

-- part: owed_lanes
-- A skip scan, like that of deliveries_next_due_times, but over the subscribers of all shards.
WITH RECURSIVE lane (subscriber_id) AS (
    SELECT min(subscriber_id) FROM deliveries {index deliveries_due} WHERE status = 'pending'
    UNION ALL
    SELECT (SELECT min(d.subscriber_id) FROM deliveries d {index deliveries_due}
        WHERE d.status = 'pending' AND d.subscriber_id > lane.subscriber_id)
    FROM lane WHERE lane.subscriber_id IS NOT NULL
)

-- name: subscribers_owed
{owed_lanes}
SELECT lane.subscriber_id FROM lane WHERE lane.subscriber_id IS NOT NULL LIMIT :limit;

-- name: stats_oldest
-- The smallest id of each of these subscribers among the deliveries at both ends of the due times. The
-- index is not in the order of ids, and a paused subscriber may have a million pending deliveries, so
-- not all of them are read.
SELECT lane.value AS subscriber_id, (SELECT min(id) FROM (
    SELECT * FROM (SELECT id FROM deliveries {index deliveries_due}
        WHERE status = 'pending' AND subscriber_id = lane.value
            AND {is_tried attempt_count} = 0 ORDER BY due_at LIMIT :limit) few_first
    UNION ALL SELECT * FROM (SELECT id FROM deliveries {index deliveries_due}
        WHERE status = 'pending' AND subscriber_id = lane.value
            AND {is_tried attempt_count} = 1 ORDER BY due_at LIMIT :limit) few_retries
    UNION ALL SELECT * FROM (SELECT id FROM deliveries {index deliveries_due}
        WHERE status = 'pending' AND subscriber_id = lane.value
            AND {is_tried attempt_count} = 1 ORDER BY due_at DESC LIMIT :limit) few_last) few) AS id
FROM {rows}(:ids) lane;

-- name: stats_due
-- Since when the oldest row of each kind is due. What a paused or disabled subscriber is owed does not
-- count.
{owed_lanes}
SELECT 'delivery' AS kind, min(few.due_at) AS due_at FROM (
    SELECT lane.subscriber_id, (SELECT min(d.due_at) FROM deliveries d {index deliveries_due}
        WHERE d.status = 'pending' AND d.subscriber_id = lane.subscriber_id
            AND {is_tried d.attempt_count} = 0) AS due_at
    FROM lane
    UNION ALL
    SELECT lane.subscriber_id, (SELECT min(d.due_at) FROM deliveries d {index deliveries_due}
        WHERE d.status = 'pending' AND d.subscriber_id = lane.subscriber_id
            AND {is_tried d.attempt_count} = 1)
    FROM lane) few
WHERE (SELECT s.status FROM subscribers s WHERE s.id = few.subscriber_id) = 'active'
UNION ALL SELECT 'submission', min(submit_at) FROM generations {index generations_submit}
    WHERE submit_at IS NOT NULL AND submission = 'waiting' AND task_id IS NULL
UNION ALL SELECT 'poll', min(next_poll_at) FROM generations {index generations_poll}
    WHERE next_poll_at IS NOT NULL
UNION ALL SELECT 'confirmation of a callback', min(due_at) FROM confirmations
UNION ALL SELECT 'replay', min(due_at) FROM replays {index replays_due} WHERE due_at IS NOT NULL;

-- name: stats_last_attempt
SELECT max(last_at) AS last_at FROM attempt_latency
WHERE subscriber_id = :subscriber_id AND slot_at > :since_at;

-- name: stats_add
INSERT INTO attempt_latency (subscriber_id, slot_at, bucket, status, count, last_at)
VALUES (:subscriber_id, :slot_at, :bucket, :status, :count, :last_at)
ON CONFLICT (subscriber_id, slot_at, bucket, status) DO UPDATE SET
    count = attempt_latency.count + excluded.count,
    last_at = {greatest}(attempt_latency.last_at, excluded.last_at);

-- name: stats_delete_old
DELETE FROM attempt_latency WHERE (subscriber_id, slot_at, bucket, status) IN (
    SELECT subscriber_id, slot_at, bucket, status FROM attempt_latency
    WHERE slot_at < :before ORDER BY slot_at LIMIT :limit);
