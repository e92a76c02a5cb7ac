-- name: idempotency_by_key
SELECT * FROM idempotency WHERE tenant = :tenant AND key = :key;

-- name: idempotency_claim
INSERT INTO idempotency (tenant, key, request_sha256, resource_id, status_code, sealed_answer,
    created_at)
VALUES (:tenant, :key, :request_sha256, :resource_id, :status_code, :sealed_answer, :created_at)
ON CONFLICT (tenant, key) DO UPDATE SET request_sha256 = excluded.request_sha256,
    resource_id = excluded.resource_id, created_at = excluded.created_at,
    status_code = excluded.status_code, sealed_answer = excluded.sealed_answer;

-- name: idempotency_store_answer
UPDATE idempotency SET status_code = :status_code, sealed_answer = :sealed_answer
WHERE tenant = :tenant AND key = :key AND resource_id = :resource_id;

-- name: idempotency_delete_old
DELETE FROM idempotency WHERE (tenant, key) IN (SELECT tenant, key FROM idempotency
    WHERE created_at < :before ORDER BY created_at LIMIT :limit)
    -- The key may have been claimed anew meanwhile.
    AND {unindexed created_at} < :before;

-- name: idempotency_erase
-- The key of an erased generation: a repeat finds nothing, and a late answer is not stored.
UPDATE idempotency SET resource_id = '', status_code = NULL, sealed_answer = NULL
WHERE created_at = :created_at AND resource_id = :id;
