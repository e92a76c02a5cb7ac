-- name: key_insert
INSERT INTO keys (id, tenant, name, key_sha256, scopes, created_at)
VALUES (:id, :tenant, :name, :key_sha256, :scopes, :created_at);

-- name: key_by_sha256
SELECT * FROM keys WHERE key_sha256 = :key_sha256 AND revoked_at IS NULL;

-- name: key_by_id
SELECT * FROM keys WHERE id = :id AND tenant = :tenant;

-- name: key_revoke
UPDATE keys SET revoked_at = :now WHERE id = :id AND revoked_at IS NULL;

-- name: keys_used
UPDATE keys SET last_used_at = :at WHERE id = :id;

-- name: idempotency_find
SELECT * FROM idempotency WHERE tenant = :tenant AND key = :key;

-- name: idempotency_claim
INSERT INTO idempotency (tenant, key, request_sha256, resource_id, created_at)
VALUES (:tenant, :key, :request_sha256, :resource_id, :created_at)
ON CONFLICT (tenant, key) DO UPDATE SET request_sha256 = excluded.request_sha256,
    resource_id = excluded.resource_id, created_at = excluded.created_at,
    status_code = NULL, sealed_answer = NULL;

-- name: idempotency_finish
UPDATE idempotency SET status_code = :status_code, sealed_answer = :sealed_answer
WHERE tenant = :tenant AND key = :key;

-- name: idempotency_release
DELETE FROM idempotency WHERE tenant = :tenant AND key = :key AND status_code IS NULL;

-- name: idempotency_abandon
UPDATE idempotency SET created_at = created_at - :age_ms
WHERE tenant = :tenant AND key = :key AND status_code IS NULL;

-- name: idempotency_delete_past
DELETE FROM idempotency WHERE (tenant, key) IN (SELECT tenant, key FROM idempotency
    WHERE created_at < :before ORDER BY created_at LIMIT :limit);
