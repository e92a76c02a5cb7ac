-- name: sign_in_insert
INSERT INTO sign_ins (id_sha256, key_sha256, expires_at)
VALUES (:id_sha256, :key_sha256, :expires_at);

-- name: sign_in_get
SELECT key_sha256 FROM sign_ins WHERE id_sha256 = :id_sha256 AND expires_at > :now;

-- name: sign_in_delete
DELETE FROM sign_ins WHERE id_sha256 = :id_sha256;

-- name: sign_ins_delete_expired
DELETE FROM sign_ins WHERE expires_at <= :now;

-- name: sign_ins_keep_newest
-- Only the :keep newest of a key stay; of equal times, those with the greater ids.
DELETE FROM sign_ins WHERE key_sha256 = :key_sha256 AND (expires_at, id_sha256) <= (
    SELECT expires_at, id_sha256 FROM sign_ins WHERE key_sha256 = :key_sha256
    ORDER BY expires_at DESC, id_sha256 DESC LIMIT 1 OFFSET :keep);
