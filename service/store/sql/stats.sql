-- name: stats_counts
SELECT status, count FROM delivery_counts WHERE subscriber_id = :subscriber_id;

-- name: stats_latency
SELECT bucket, sum(count) AS count FROM attempt_latency
WHERE subscriber_id = :subscriber_id AND slot_at > :since_at GROUP BY bucket ORDER BY bucket;

-- name: stats_oldest
SELECT created_at FROM deliveries INDEXED BY deliveries_subscriber
WHERE status = 'pending' AND subscriber_id = :subscriber_id ORDER BY id LIMIT 1;

-- name: stats_owed
-- A skip scan: the oldest delivery owed to each subscriber, one step for each.
WITH RECURSIVE lane (subscriber_id) AS (
    SELECT min(subscriber_id) FROM deliveries INDEXED BY deliveries_due WHERE status = 'pending'
    UNION ALL
    SELECT (SELECT min(d.subscriber_id) FROM deliveries d INDEXED BY deliveries_due
        WHERE d.status = 'pending' AND d.subscriber_id > lane.subscriber_id)
    FROM lane WHERE lane.subscriber_id IS NOT NULL
)
SELECT lane.subscriber_id, (SELECT d.created_at FROM deliveries d INDEXED BY deliveries_subscriber
    WHERE d.status = 'pending' AND d.subscriber_id = lane.subscriber_id
    ORDER BY d.id LIMIT 1) AS created_at
FROM lane WHERE lane.subscriber_id IS NOT NULL;

-- name: stats_last_attempt
SELECT max(last_at) AS last_at FROM attempt_latency
WHERE subscriber_id = :subscriber_id AND slot_at > :since_at;

-- name: stats_add
INSERT INTO attempt_latency (subscriber_id, slot_at, bucket, count, last_at)
VALUES (:subscriber_id, :slot_at, :bucket, :count, :last_at)
ON CONFLICT (subscriber_id, slot_at, bucket) DO UPDATE SET count = count + excluded.count,
    last_at = max(last_at, excluded.last_at);

-- name: stats_delete_past
DELETE FROM attempt_latency WHERE (subscriber_id, slot_at, bucket) IN (
    SELECT subscriber_id, slot_at, bucket FROM attempt_latency
    WHERE slot_at < :before ORDER BY slot_at LIMIT :limit);

-- name: stats_count
INSERT INTO delivery_counts (subscriber_id, status, count)
VALUES (:subscriber_id, :status, :count)
ON CONFLICT (subscriber_id, status) DO UPDATE SET count = count + excluded.count;

-- name: stats_count_gone
DELETE FROM delivery_counts
WHERE subscriber_id = :subscriber_id AND status = :status AND count <= 0;
