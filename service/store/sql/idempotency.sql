-- name: idempotency_by_key
SELECT * FROM idempotency WHERE tenant = :tenant AND key = :key;

-- name: idempotency_claim
INSERT INTO idempotency (tenant, key, request_sha256, resource_id, created_at)
VALUES (:tenant, :key, :request_sha256, :resource_id, :created_at)
ON CONFLICT (tenant, key) DO UPDATE SET request_sha256 = excluded.request_sha256,
    resource_id = excluded.resource_id, created_at = excluded.created_at,
    status_code = NULL, sealed_answer = NULL;

-- name: idempotency_store_answer
UPDATE idempotency SET status_code = :status_code, sealed_answer = :sealed_answer
WHERE tenant = :tenant AND key = :key;

-- name: idempotency_release
DELETE FROM idempotency WHERE tenant = :tenant AND key = :key AND status_code IS NULL;

-- name: idempotency_age
UPDATE idempotency SET created_at = created_at - :age_ms
WHERE tenant = :tenant AND key = :key AND status_code IS NULL;

-- name: idempotency_delete_old
DELETE FROM idempotency WHERE (tenant, key) IN (SELECT tenant, key FROM idempotency
    WHERE created_at < :before ORDER BY created_at LIMIT :limit);
