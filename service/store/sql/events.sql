-- name: event_insert!
INSERT INTO events (id, tenant, type, generation_id, created_at, body)
VALUES (:id, :tenant, :type, :generation_id, :created_at, :body);

-- name: event_by_id
SELECT * FROM events WHERE id = :id AND tenant = :tenant;

-- name: events_of_generation
SELECT id, type, created_at FROM events WHERE generation_id = :generation_id
ORDER BY seq LIMIT 100;
