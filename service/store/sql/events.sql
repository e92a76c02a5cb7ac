-- name: event_insert
INSERT INTO events (id, tenant, type, generation_id, body)
VALUES (:id, :tenant, :type, :generation_id, :body);

-- name: event_by_id
SELECT * FROM events WHERE id = :id AND tenant = :tenant;

-- name: events_of_generation
SELECT e.id, e.type FROM generations g CROSS JOIN {rows}(g.event_ids) i
{ordered} JOIN events e ON e.id = i.value
WHERE g.id = :generation_id ORDER BY e.seq, e.id;

-- name: events_old
-- The next events from before a time. One can be deleted once it has no delivery, and no running
-- replay has still to read it.
SELECT e.id, NOT EXISTS (SELECT 1 FROM deliveries d WHERE d.event_id = e.id {each})
    AND NOT EXISTS (SELECT 1 FROM replays r {index replays_running}
        WHERE r.status = 'running' AND r.tenant = e.tenant
            AND e.seq > r.cursor AND e.seq <= r.last_seq {each}) AS is_deletable
FROM events e WHERE e.id > :after AND e.id < :before_id ORDER BY e.id LIMIT :limit;
-- lock, then look again: e

-- name: event_delete
DELETE FROM events WHERE id = :id;

-- name: events_of_ids
-- :event_ids is a JSON list.
SELECT e.id FROM {rows}(:event_ids) i {ordered} JOIN events e ON e.id = i.value {sorted e.id};
-- lock: e

-- name: events_erase
-- What is left until the retention is the place: a cursor of whoever has read the event stays exact.
UPDATE events SET tenant = '', type = '', generation_id = NULL, body = substr(body, 1, 0)
WHERE id IN (SELECT value FROM {rows}(:event_ids));
