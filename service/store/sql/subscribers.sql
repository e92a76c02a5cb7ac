-- name: subscriber_insert
INSERT INTO subscribers (id, tenant, is_notify, url, description, event_types, filter,
    header_names, sealed_headers, sealed_secrets, status, disabled_reason, max_in_flight,
    rate_per_second, retry_schedule_seconds, ordered, payload, signature, created_at, updated_at)
VALUES (:id, :tenant, :is_notify, :url, :description, :event_types, :filter,
    :header_names, :sealed_headers, :sealed_secrets, :status, :disabled_reason, :max_in_flight,
    :rate_per_second, :retry_schedule_seconds, :ordered, :payload, :signature, :created_at,
    :updated_at);

-- name: subscriber_update
UPDATE subscribers SET url = :url, description = :description, event_types = :event_types,
    filter = :filter, header_names = :header_names, sealed_headers = :sealed_headers,
    sealed_secrets = :sealed_secrets, status = :status, disabled_reason = :disabled_reason,
    max_in_flight = :max_in_flight, rate_per_second = :rate_per_second,
    retry_schedule_seconds = :retry_schedule_seconds, ordered = :ordered, payload = :payload,
    signature = :signature, failing_since = :failing_since, last_failed_at = :last_failed_at,
    probing = :probing, updated_at = :updated_at
WHERE id = :id;

-- name: subscriber_by_id
SELECT * FROM subscribers WHERE id = :id;
-- lock: subscribers

-- name: subscriber_notify
SELECT * FROM subscribers WHERE tenant = :tenant AND url = :url AND is_notify = 1;
-- lock: subscribers

-- name: subscriber_notify_enabled
SELECT * FROM subscribers
WHERE tenant = :tenant AND url = :url AND is_notify = 1 AND {unindexed status} <> 'disabled';
-- lock: subscribers

-- name: subscribers_of_tenant
-- What decides who gets an event. Each event reads this, so it is short.
SELECT id, tenant, url, event_types, filter, status, retry_schedule_seconds, ordered, created_at,
    updated_at
FROM subscribers WHERE tenant = :tenant AND is_notify = 0 AND status <> 'disabled';

-- name: subscribers_count
SELECT count(*) AS count FROM subscribers WHERE tenant = :tenant AND is_notify = 0;

-- name: subscribers_owed_notices
-- How many deliveries are needed to tell each enabled subscriber of each that was disabled since a time.
SELECT count(*) FILTER (WHERE status = 'disabled' AND updated_at > :since_at)
    * count(*) FILTER (WHERE status <> 'disabled') AS count
FROM subscribers WHERE tenant = :tenant AND is_notify = 0;

-- name: subscriber_delete
DELETE FROM subscribers WHERE id = :id;

-- name: rest_store
INSERT INTO rests (tenant, receiver, slow_until, asked_at)
VALUES (:tenant, :receiver, :slow_until, :asked_at)
ON CONFLICT (tenant, receiver) DO UPDATE SET
    slow_until = {greatest}(rests.slow_until, excluded.slow_until),
    asked_at = {greatest}(rests.asked_at, excluded.asked_at);

-- name: rests_of
SELECT receiver, slow_until FROM rests
WHERE tenant = :tenant AND receiver IN (:receiver, :narrower);

-- name: rests_end
-- The origin and what begins with it and a space: "!" is the character after the space.
DELETE FROM rests WHERE tenant = :tenant AND receiver >= :origin AND receiver < :origin || '!'
    AND asked_at <= :until;

-- name: rests_delete_old
DELETE FROM rests WHERE (tenant, receiver) IN (SELECT tenant, receiver FROM rests
    WHERE slow_until < :before ORDER BY slow_until LIMIT :limit)
    AND {unindexed slow_until} < :before;

-- name: tenant_by_id
SELECT * FROM tenants WHERE id = :id;
-- lock: tenants

-- name: tenant_insert
INSERT INTO tenants (id, sealed_secrets, created_at) VALUES (:id, :sealed_secrets, :created_at)
ON CONFLICT (id) DO NOTHING;

-- name: tenant_update
UPDATE tenants SET sealed_secrets = :sealed_secrets WHERE id = :id;

-- name: subscribers_bump_revision
UPDATE revisions SET number = number + 1 WHERE noun = 'subscribers';

-- name: subscriber_change_insert
INSERT INTO subscriber_changes (number, tenant, subscriber_id)
SELECT number, :tenant, :subscriber_id FROM revisions WHERE noun = 'subscribers';

-- name: subscriber_changes_forget
DELETE FROM subscriber_changes
WHERE number <= (SELECT number FROM revisions WHERE noun = 'subscribers') - :kept;

-- name: subscriber_changes_since
SELECT DISTINCT tenant, subscriber_id FROM subscriber_changes WHERE number > :revision;

-- name: subscriber_changes_oldest
SELECT min(number) AS number FROM subscriber_changes;

-- name: trial_insert
INSERT INTO revisions (noun, number) VALUES (:noun, 0);

-- name: trial_delete
DELETE FROM revisions WHERE noun = :noun;

-- name: subscribers_revision
SELECT number FROM revisions WHERE noun = 'subscribers';

-- name: subscribers_notify_old
-- The next subscribers of a notify_url from before a time. One can be deleted once it
-- has no generation and no delivery any more.
SELECT s.id, s.id AS notify_subscriber_id,
    NOT EXISTS (SELECT 1 FROM generations g WHERE g.notify_subscriber_id = s.id {each})
    AND NOT EXISTS (SELECT 1 FROM deliveries d WHERE d.subscriber_id = s.id {each}) AS is_deletable
FROM subscribers s WHERE s.is_notify = 1 AND s.id > :after AND s.id < :before_id
ORDER BY s.id LIMIT :limit;
-- lock, then look again: s

-- name: subscriber_notify_erase
-- That of a notify_url, once no other generation has it.
DELETE FROM subscribers WHERE id = :notify_subscriber_id AND is_notify = 1
    AND NOT EXISTS (SELECT 1 FROM generations g WHERE g.notify_subscriber_id = subscribers.id)
    AND NOT EXISTS (SELECT 1 FROM deliveries d WHERE d.subscriber_id = subscribers.id);

-- name: tenants_all
SELECT id FROM tenants ORDER BY id;

-- name: tenants_sealed
SELECT id, sealed_secrets FROM tenants WHERE id > :after ORDER BY id LIMIT :limit;
-- lock: tenants

-- name: subscribers_sealed
SELECT id, sealed_secrets, sealed_headers FROM subscribers
WHERE id > :after AND coalesce(sealed_secrets, sealed_headers) IS NOT NULL
ORDER BY id LIMIT :limit;
-- lock: subscribers

-- name: subscriber_reseal
UPDATE subscribers SET sealed_secrets = :sealed_secrets, sealed_headers = :sealed_headers
WHERE id = :id;
