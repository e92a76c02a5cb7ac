-- name: deliveries_insert
INSERT INTO deliveries (tenant, id, subscriber_id, event_id, event_type, generation_id, trigger,
    due_at)
VALUES (:tenant, :id, :subscriber_id, :event_id, :event_type, :generation_id, :trigger, :due_at);

-- name: delivery_by_id
SELECT * FROM deliveries WHERE tenant = :tenant AND id = :id;
-- lock: deliveries

-- name: deliveries_next_due_times
-- A skip scan: one step for each subscriber with pending deliveries, however many it has.
WITH RECURSIVE lane (subscriber_id) AS (
    SELECT min(subscriber_id) FROM deliveries {index deliveries_due}
    WHERE status = 'pending' AND subscriber_id > :after
    UNION ALL
    SELECT (SELECT min(d.subscriber_id) FROM deliveries d {index deliveries_due}
        WHERE d.status = 'pending' AND d.subscriber_id > lane.subscriber_id)
    FROM lane WHERE lane.subscriber_id IS NOT NULL
)
SELECT lane.subscriber_id,
    (SELECT s.status FROM subscribers s WHERE s.id = lane.subscriber_id) AS status,
    (SELECT min(d.due_at) FROM deliveries d {index deliveries_due}
        WHERE d.status = 'pending' AND d.subscriber_id = lane.subscriber_id
            AND {is_tried d.attempt_count} = 0) AS first_at,
    (SELECT min(d.due_at) FROM deliveries d {index deliveries_due}
        WHERE d.status = 'pending' AND d.subscriber_id = lane.subscriber_id
            AND {is_tried d.attempt_count} = 1) AS retry_at
FROM lane WHERE lane.subscriber_id IS NOT NULL {held_id lane.subscriber_id} LIMIT :limit;

-- part: due_columns
-- In the order of the fields of DueDelivery.
d.tenant, d.id, d.subscriber_id, d.event_id, d.event_type, d.generation_id,
    d.attempt_count, d.trigger, e.body, d.manual_count, d.planned_at

-- name: deliveries_due
SELECT {due_columns}
FROM deliveries d {index deliveries_due} JOIN events e ON e.id = d.event_id
WHERE d.status = 'pending' AND d.subscriber_id = :subscriber_id
    AND {is_tried d.attempt_count} = :retries AND d.due_at <= :now AND d.trigger <> 'manual'
ORDER BY d.due_at LIMIT :limit;

-- name: deliveries_asked
-- What a person asked for. There are few, and they are found though many others are due.
SELECT {due_columns}
FROM deliveries d {index deliveries_asked} JOIN events e ON e.id = d.event_id
WHERE d.status = 'pending' AND d.trigger = 'manual' AND d.subscriber_id = :subscriber_id
    AND d.due_at <= :now
ORDER BY d.due_at LIMIT :limit;

-- name: deliveries_due_ordered
-- Like deliveries_due, but a delivery waits while an earlier event of its generation is pending. The
-- subquery searches the few events of that generation, not all pending deliveries of the subscriber.
-- The ids of its events are in their order; those of deliveries are not, if two processes made them.
SELECT {due_columns}
FROM deliveries d {index deliveries_due} JOIN events e ON e.id = d.event_id
WHERE d.status = 'pending' AND d.subscriber_id = :subscriber_id
    AND {is_tried d.attempt_count} = :retries AND d.due_at <= :now
    AND NOT EXISTS (SELECT 1 FROM generations g CROSS JOIN {rows}(g.event_ids) pe
        {ordered} JOIN deliveries pd {index deliveries_event} ON pd.event_id = pe.value
        WHERE g.id = d.generation_id AND pd.subscriber_id = d.subscriber_id
            AND pd.status = 'pending' AND (pd.event_id, pd.id) < (d.event_id, d.id))
ORDER BY d.due_at LIMIT :limit;

-- name: deliveries_delay_later
-- Make the later events of a generation wait for the retry of an earlier one. `planned_at` keeps when
-- each is due by its own schedule; what a person asked for is due at once.
UPDATE deliveries SET due_at = {greatest}(due_at, :due_at),
    planned_at = CASE WHEN trigger = 'manual' THEN planned_at ELSE coalesce(planned_at, due_at) END
WHERE tenant = :tenant AND status = 'pending' AND id IN (
    SELECT d.id FROM generations g CROSS JOIN {rows}(g.event_ids) e
    {ordered} JOIN deliveries d {index deliveries_event} ON d.event_id = e.value
    WHERE g.id = :generation_id AND d.subscriber_id = :subscriber_id
        AND d.status = 'pending' AND (d.event_id, d.id) > (SELECT event_id, id FROM deliveries
            -- It may have ended: by another process, or by a person.
            WHERE tenant = :tenant AND id = :delivery_id AND status = 'pending'));

-- name: delivery_make_due
-- Make the next event of a generation due when it is by its own schedule, once the delivery of the one
-- before it has ended.
UPDATE deliveries SET
    due_at = CASE WHEN trigger = 'manual' THEN {least}(due_at, :now)
        ELSE coalesce(planned_at, due_at) END,
    planned_at = CASE WHEN trigger = 'manual' THEN planned_at END
WHERE tenant = :tenant AND status = 'pending' AND id = (
    SELECT d.id FROM generations g CROSS JOIN {rows}(g.event_ids) e
    {ordered} JOIN deliveries d {index deliveries_event} ON d.event_id = e.value
    WHERE g.id = :generation_id AND d.subscriber_id = :subscriber_id
        AND d.status = 'pending'
    ORDER BY d.event_id, d.id LIMIT 1);

-- name: delivery_next_due
SELECT min(due_at) AS due_at FROM deliveries {index deliveries_due}
WHERE status = 'pending' AND subscriber_id = :subscriber_id
    AND {is_tried attempt_count} = :retries AND due_at > :now;

-- part: is_asked_meanwhile
trigger = 'manual' AND (due_at > :started_at OR due_at = :started_at AND :trigger <> 'manual')

-- name: delivery_record
-- The attempt must follow the last one: a process that has lost its shard can then change nothing.
-- A retry that a person asked for while the attempt was under way (`is_asked_meanwhile`) stays due,
-- unless the attempt delivered the event. A delivery that was canceled while the attempt was under
-- way stays canceled, but shows that the event was sent, and whether it arrived.
UPDATE deliveries SET attempt_count = :number, delivered_at = :delivered_at,
    last_error = :last_error,
    manual_count = manual_count + CASE WHEN :trigger = 'manual' THEN 1 ELSE 0 END,
    planned_at = CASE WHEN :status <> 'delivered' AND {is_asked_meanwhile}
        THEN CAST(:due_at AS BIGINT) END,
    status = CASE WHEN status = 'canceled' THEN status
        WHEN :status <> 'delivered' AND {is_asked_meanwhile} THEN 'pending' ELSE :status END,
    due_at = CASE WHEN status = 'canceled' THEN NULL
        WHEN :status <> 'delivered' AND {is_asked_meanwhile} THEN due_at ELSE :due_at END,
    trigger = CASE WHEN trigger = 'manual' AND NOT ({is_asked_meanwhile})
        THEN 'scheduled' ELSE trigger END
WHERE tenant = :tenant AND id = :delivery_id AND status IN ('pending', 'canceled')
    AND attempt_count = :number - 1;

-- name: delivery_retry
UPDATE deliveries SET status = 'pending', due_at = :now, trigger = 'manual',
    planned_at = CASE WHEN trigger = 'manual' THEN planned_at ELSE coalesce(planned_at, due_at) END
WHERE tenant = :tenant AND id = :id AND status IN ('pending', 'dead');

-- name: delivery_delay
UPDATE deliveries SET due_at = {greatest}(due_at, :due_at)
WHERE tenant = :tenant AND id = :id AND status = 'pending';

-- name: attempt_insert
INSERT INTO attempts (delivery_id, number, id, trigger, started_at, duration_ms, status_code,
    error_code, error_message, response_headers, response_body)
SELECT :delivery_id, :number, :id, :trigger, :started_at, :duration_ms, :status_code,
    :error_code, :error_message, :response_headers, :response_body
-- The delivery may have been erased with its generation while the attempt was under way.
WHERE EXISTS (SELECT 1 FROM deliveries WHERE tenant = :tenant AND id = :delivery_id {kept})
ON CONFLICT (delivery_id, number) DO NOTHING;

-- name: attempts_of_delivery
-- The latest ones, oldest first.
SELECT * FROM (SELECT * FROM attempts WHERE delivery_id = :delivery_id
    ORDER BY number DESC LIMIT 250) few ORDER BY number;

-- name: attempts_of_generation
SELECT a.*, d.subscriber_id, d.event_id FROM generations g
CROSS JOIN {rows}(g.event_ids) e {ordered} JOIN deliveries d ON d.event_id = e.value
{ordered} JOIN attempts a ON a.delivery_id = d.id
WHERE g.id = :generation_id
ORDER BY a.started_at LIMIT 1000;

-- name: delivery_tenant
-- All deliveries to a subscriber belong to one tenant.
SELECT tenant FROM deliveries {index deliveries_subscriber}
WHERE subscriber_id = :subscriber_id LIMIT 1;

-- name: deliveries_cancel
UPDATE deliveries SET status = 'canceled', due_at = NULL
WHERE (tenant, id) IN (SELECT d.tenant, d.id FROM deliveries d {index deliveries_due}
    WHERE d.status = 'pending' AND d.subscriber_id = :subscriber_id LIMIT :limit);

-- name: deliveries_old
-- A tenant's next deliveries from before a time. One can be deleted once it has ended and has had
-- no attempt since that time.
SELECT d.tenant, d.id, d.status <> 'pending' AND NOT EXISTS (SELECT 1 FROM attempts a
    WHERE a.delivery_id = d.id AND a.started_at >= :before {each}) AS is_deletable
FROM deliveries d WHERE d.tenant = :tenant AND d.id > :after AND d.id < :before_id
ORDER BY d.id LIMIT :limit;
-- lock, then look again: d

-- name: delivery_cancel_disabled
-- What a disabled subscriber is owed ends after the retention; the next sweep deletes it.
UPDATE deliveries SET status = 'canceled', due_at = NULL
WHERE tenant = :tenant AND id = :id AND status = 'pending' AND EXISTS (SELECT 1 FROM subscribers s
    WHERE s.id = deliveries.subscriber_id AND s.status = 'disabled');

-- name: delivery_delete
DELETE FROM deliveries WHERE tenant = :tenant AND id = :id;

-- name: attempts_delete
DELETE FROM attempts WHERE delivery_id = :id;

-- name: deliveries_of_events
-- :event_ids is a JSON list.
SELECT d.id, d.subscriber_id, d.status FROM {rows}(:event_ids) e
{ordered} JOIN deliveries d {index deliveries_event} ON d.event_id = e.value {sorted d.id};
-- lock: d

-- name: attempts_of_events_delete
DELETE FROM attempts WHERE delivery_id IN (SELECT d.id FROM {rows}(:event_ids) e
    {ordered} JOIN deliveries d {index deliveries_event} ON d.event_id = e.value);

-- name: deliveries_of_events_delete
DELETE FROM deliveries WHERE event_id IN (SELECT value FROM {rows}(:event_ids));
