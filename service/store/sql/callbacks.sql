-- name: callbacks_generation_states
-- For each generation id of a JSON list: what the verdict of a callback depends on. Most generations
-- get one callback: whether there were others is one look into the tree of bodies.
SELECT p.key AS position, g.id, g.tenant, g.status, g.nonce, g.last_poll_at,
    EXISTS (SELECT 1 FROM callback_bodies b
        WHERE b.generation_id = g.id AND b.body_digest > '') AS has_others
FROM {rows}(:ids) p {ordered} JOIN generations g ON g.id = p.value {sorted g.id};
-- lock: g

-- name: callbacks_kept
-- For each generation id of a JSON list: how many callbacks it keeps, how many bytes of them, and the
-- digests of their bodies. Rejected ones, whose digest is empty, are bounded by themselves.
SELECT p.value AS generation_id, count(*) AS count,
    CAST(sum(length(b.headers) + length(b.body)) AS BIGINT) AS size,
    json_group_array(b.body_digest) AS digests
FROM {rows}(:ids) p {ordered} JOIN callback_bodies b ON b.generation_id = p.value AND b.body_digest > ''
GROUP BY p.value;

-- name: callbacks_insert
INSERT INTO callbacks (tenant, id, generation_id, upstream, verdict, reason, trust, body_digest)
VALUES (:tenant, :id, :generation_id, :upstream, :verdict, :reason, :trust, :body_digest);

-- name: callback_bodies_insert
INSERT INTO callback_bodies (generation_id, body_digest, callback_id, headers, body)
VALUES (:generation_id, :body_digest, :id, :headers, :body);

-- name: callback_doubt
UPDATE callbacks SET trust = 'confirm'
WHERE tenant = (SELECT tenant FROM generations WHERE id = :generation_id) AND id = :id;

-- part: first_body
-- A repeated body is stored with the first callback that had it. Rejected ones have no digest.
CASE WHEN length(b.body) > 0 OR b.body_digest = '' THEN b.body ELSE (
    SELECT f.body FROM callback_bodies f
    WHERE f.generation_id = b.generation_id AND f.body_digest = b.body_digest
    ORDER BY length(f.body) DESC LIMIT 1) END AS body

-- name: callback_by_id
SELECT c.*, b.headers, {first_body}
FROM callbacks c JOIN callback_bodies b ON b.generation_id = c.generation_id
    AND b.body_digest = c.body_digest AND b.callback_id = c.id
WHERE c.tenant = :tenant AND c.id = :id;

-- name: callbacks_of_generation
SELECT c.id, c.verdict, c.reason, c.trust
FROM callback_bodies b {ordered} JOIN callbacks c ON c.tenant = :tenant AND c.id = b.callback_id
WHERE b.generation_id = :generation_id ORDER BY c.id LIMIT 1000;

-- name: callback_bodies_latest
SELECT b.body
FROM callback_bodies b {ordered} JOIN callbacks c ON c.tenant = :tenant AND c.id = b.callback_id
WHERE b.generation_id = :generation_id AND c.verdict IN ('accepted', 'late') AND length(b.body) > 0
ORDER BY c.id DESC LIMIT 3;

-- name: callback_latest
SELECT c.id, {first_body}
FROM callback_bodies b {ordered} JOIN callbacks c ON c.tenant = :tenant AND c.id = b.callback_id
WHERE b.generation_id = :generation_id AND c.verdict IN ('accepted', 'unreadable', 'duplicate')
ORDER BY c.id DESC LIMIT 1;

-- name: callbacks_rejected_old
-- The oldest rejected callbacks, from before a time or beyond the number to keep; those of no tenant,
-- which anybody can send, apart from the others.
SELECT tenant, id, generation_id, body_digest, TRUE AS is_deletable FROM callbacks
WHERE verdict = 'rejected' AND (tenant = '') = :is_unowned
    AND (id < :before_id OR id <= (SELECT id FROM callbacks WHERE verdict = 'rejected'
        AND (tenant = '') = :is_unowned ORDER BY id DESC LIMIT 1 OFFSET :keep))
ORDER BY id LIMIT :limit;
-- lock: callbacks

-- name: callback_delete
DELETE FROM callbacks WHERE tenant = :tenant AND id = :id;

-- name: callback_body_delete
DELETE FROM callback_bodies WHERE generation_id = :generation_id AND body_digest = :body_digest
    AND callback_id = :id;

-- name: callbacks_of_generation_delete
-- The first :most, which are those of callback_bodies_of_generation_delete.
DELETE FROM callbacks WHERE (tenant, id) IN (
    SELECT :tenant, callback_id FROM callback_bodies WHERE generation_id = :id
    ORDER BY body_digest, callback_id LIMIT :most);

-- name: callback_bodies_of_generation_delete
DELETE FROM callback_bodies WHERE (generation_id, body_digest, callback_id) IN (
    SELECT generation_id, body_digest, callback_id FROM callback_bodies WHERE generation_id = :id
    ORDER BY body_digest, callback_id LIMIT :most);
