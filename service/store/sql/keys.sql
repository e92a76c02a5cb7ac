-- name: key_insert
INSERT INTO keys (id, tenant, name, key_sha256, scopes, created_at)
VALUES (:id, :tenant, :name, :key_sha256, :scopes, :created_at);

-- name: key_by_sha256
SELECT * FROM keys WHERE key_sha256 = :key_sha256 AND revoked_at IS NULL;

-- name: key_by_id
-- A tenant of NULL stands for any.
SELECT * FROM keys WHERE id = :id AND tenant = coalesce(:tenant, tenant);

-- name: key_revoke
UPDATE keys SET revoked_at = :now WHERE id = :id AND revoked_at IS NULL;

-- name: key_record_use
UPDATE keys SET last_used_at = :at WHERE id = :id;
