-- name: callback_insert^
-- The verdict is decided where it is stored: late after the outcome, duplicate after the same body.
INSERT INTO callbacks (tenant, id, generation_id, upstream, received_at, verdict, reason, trust,
    body_sha256)
SELECT g.tenant, :id, g.id, :upstream, :received_at,
    CASE
        WHEN g.status IN ('succeeded', 'failed') THEN 'late'
        WHEN EXISTS (SELECT 1 FROM callbacks c
            WHERE c.generation_id = g.id AND c.body_sha256 = :body_sha256) THEN 'duplicate'
        WHEN NOT :readable THEN 'unreadable'
        ELSE 'accepted'
    END, :reason, :trust, :body_sha256
FROM generations g WHERE g.id = :generation_id AND g.nonce = :nonce
RETURNING verdict;

-- name: callback_bodies_insert*!
INSERT INTO callback_bodies (callback_id, headers, body) VALUES (:id, :headers, :body);

-- name: callback_reject!
INSERT INTO callbacks (tenant, id, generation_id, upstream, received_at, verdict, reason, trust,
    body_sha256)
VALUES (coalesce((SELECT tenant FROM generations WHERE id = :generation_id), ''), :id,
    :generation_id, :upstream, :received_at, 'rejected', :reason, NULL, :body_sha256);

-- name: callback_by_id
SELECT c.*, b.headers, b.body
FROM callbacks c JOIN callback_bodies b ON b.callback_id = c.id
WHERE c.tenant = :tenant AND c.id = :id;

-- name: callbacks_of_generation
SELECT id, received_at, verdict, reason, trust FROM callbacks
WHERE generation_id = :generation_id ORDER BY id LIMIT 1000;

-- name: callback_bodies_latest
SELECT b.body FROM callbacks c JOIN callback_bodies b ON b.callback_id = c.id
WHERE c.generation_id = :generation_id AND c.verdict IN ('accepted', 'late')
ORDER BY c.id DESC LIMIT 3;

-- name: callbacks_rejected_old
SELECT tenant, id FROM callbacks
WHERE verdict = 'rejected'
    AND (received_at < :before OR id <= (SELECT id FROM callbacks WHERE verdict = 'rejected'
        ORDER BY id DESC LIMIT 1 OFFSET :keep))
ORDER BY id LIMIT :limit;

-- name: callback_delete*!
DELETE FROM callbacks WHERE tenant = :tenant AND id = :id;

-- name: callback_body_delete*!
DELETE FROM callback_bodies WHERE callback_id = :id;
