-- name: generation_insert
INSERT INTO generations (id, tenant, model, status, route, notify_url, notify_subscriber_id,
    retry_of, deadline_at, nonce, submission, submit_at)
VALUES (:id, :tenant, :model, :status, :route, :notify_url, :notify_subscriber_id,
    :retry_of, :deadline_at, :nonce, :submission, :submit_at);

-- name: generation_body_insert
INSERT INTO generation_bodies (generation_id, input, metadata) VALUES (:id, :input, :metadata);

-- name: generation_metadata_insert
INSERT INTO generation_metadata (tenant, name, value, generation_id)
VALUES (:tenant, :name, :value, :generation_id);

-- name: generation_by_id
SELECT g.*, b.input, b.metadata, b.output, b.error
FROM generations g JOIN generation_bodies b ON b.generation_id = g.id
WHERE g.id = :id;
-- lock: g, b

-- name: generation_tenant
SELECT tenant FROM generations WHERE id = :id;
-- lock: generations

-- name: generations_by_id
-- :ids is a JSON list.
SELECT g.*, b.input, b.metadata, b.output, b.error
FROM {rows}(:ids) i {ordered} JOIN generations g ON g.id = i.value
JOIN generation_bodies b ON b.generation_id = g.id {sorted g.id};
-- lock: g, b

-- name: generations_ended
-- :ids is a JSON list.
SELECT g.id FROM {rows}(:ids) i {ordered} JOIN generations g ON g.id = i.value
WHERE g.status NOT IN ('queued', 'processing');

-- name: generations_of_tasks
-- The generations, but for :id and those whose task is :own_task, that have one of these tasks, or
-- learned it as another name of their task (`is_name`). `is_own` is 1 where upstream's answer to the submission named the task, and
-- not only a callback or answers to polls. :task_ids is a JSON list. `input` is NULL where it is the same
-- text as :input, or if that is NULL.
SELECT g.id, q.task_id, g.model, CASE WHEN b.input <> :input THEN b.input END AS input, q.is_name, NOT q.is_name AND EXISTS (SELECT 1 FROM exchanges e
        WHERE e.generation_id = g.id AND e.kind = 'submission' AND e.outcome = 'taken'
            AND e.detail = g.task_id) AS is_own
FROM (SELECT g.id, g.task_id, FALSE AS is_name
    FROM {rows}(:task_ids) i {ordered} JOIN generations g ON g.task_id = i.value
    UNION ALL
    SELECT n.generation_id, n.task_id, TRUE FROM {rows}(:task_ids) i {ordered} JOIN task_names n
        ON n.task_id = i.value) q
{ordered} JOIN generations g ON g.id = q.id
{ordered} JOIN generation_bodies b ON b.generation_id = q.id
WHERE q.id <> :id AND (g.task_id = :own_task) IS NOT TRUE LIMIT :limit;

-- name: generation_remove_task
UPDATE generations SET task_id = NULL, next_poll_at = NULL
WHERE id = :id AND {unindexed task_id} = :task_id AND status NOT IN ('succeeded', 'failed');

-- name: task_name
-- `is_own`: a generation learned it that is :id, or whose task is :own_task.
SELECT n.is_revoked, n.generation_id = :id OR (g.task_id = :own_task) IS TRUE AS is_own
FROM task_names n LEFT JOIN generations g ON g.id = n.generation_id WHERE n.task_id = :task_id;

-- name: task_name_learn
-- :names_max bounds the names that one generation learns, if nobody has deleted it meanwhile. Those
-- that share a task may learn the same.
INSERT INTO task_names (task_id, generation_id)
SELECT :task_id, :id
WHERE (SELECT count(*) FROM task_names WHERE generation_id = :id) < :names_max
    AND EXISTS (SELECT 1 FROM generations WHERE id = :id)
ON CONFLICT (task_id) DO UPDATE SET is_revoked = 1
WHERE task_names.generation_id <> excluded.generation_id AND NOT EXISTS (SELECT 1
    FROM generations g {ordered} JOIN generations s ON s.task_id = g.task_id
    WHERE g.id = excluded.generation_id AND s.id = task_names.generation_id);

-- name: task_name_revoke
UPDATE task_names SET is_revoked = 1 WHERE task_id = :task_id AND is_revoked = 0;

-- name: task_names_delete
DELETE FROM task_names WHERE generation_id = :id;

-- name: generations_of_polls
-- The generations of a JSON list of ids, and those without a final outcome that share a task with one.
SELECT g.*, b.input, b.metadata, b.output, b.error
FROM (SELECT value AS id FROM {rows}(:ids)
    UNION
    SELECT id FROM (SELECT s.id FROM {rows}(:ids) i {ordered} JOIN generations p ON p.id = i.value
        {ordered} JOIN generations s ON s.task_id = p.task_id
        WHERE s.status NOT IN ('succeeded', 'failed', 'canceled') LIMIT :shared_max) few) q
{ordered} JOIN generations g ON g.id = q.id
{ordered} JOIN generation_bodies b ON b.generation_id = q.id {sorted g.id};
-- lock: g, b

-- name: generation_update
UPDATE generations SET status = :status, task_id = :task_id, credits = :credits,
    submitted_at = :submitted_at, completed_at = :completed_at, submission = :submission,
    submit_at = :submit_at, submit_count = :submit_count, next_poll_at = :next_poll_at,
    poll_count = :poll_count, trouble_count = :trouble_count,
    late_poll_count = :late_poll_count, last_poll_at = :last_poll_at, event_ids = :event_ids
WHERE id = :id;

-- name: generation_update_status
-- task_id is left out, so that its index is not written.
UPDATE generations SET status = :status, credits = :credits, completed_at = :completed_at,
    submit_at = :submit_at, next_poll_at = :next_poll_at, poll_count = :poll_count,
    trouble_count = :trouble_count, late_poll_count = :late_poll_count,
    last_poll_at = :last_poll_at, event_ids = :event_ids
WHERE id = :id;

-- name: generation_update_plan
-- status and task_id are left out, so that their indexes are not written.
UPDATE generations SET next_poll_at = :next_poll_at, poll_count = :poll_count,
    trouble_count = :trouble_count, late_poll_count = :late_poll_count,
    last_poll_at = :last_poll_at
WHERE id = :id;

-- name: generation_body_update
UPDATE generation_bodies SET output = :output, error = :error WHERE generation_id = :id;

-- part: tenants
-- The tenants with a generation that has a time {}, in turn: from the one after :after on, then from the
-- first one up to it. Each is one step of the partial index, however many generations it has. A
-- statement that needs only some tenants takes no further steps.
WITH RECURSIVE tenants (lap, tenant) AS (
    SELECT 0, (SELECT min(g.tenant) FROM generations g
        WHERE g.{} IS NOT NULL AND g.tenant > :after)
    UNION ALL
    SELECT 1, (SELECT min(g.tenant) FROM generations g WHERE g.{} IS NOT NULL)
    UNION ALL
    SELECT tenants.lap, (SELECT min(g.tenant) FROM generations g
        WHERE g.{} IS NOT NULL AND g.tenant > tenants.tenant)
    FROM tenants WHERE tenants.tenant IS NOT NULL AND (tenants.lap = 0 OR tenants.tenant <= :after)
    ORDER BY 1)

-- part: is_free
-- No callback waits for the generation's confirmation, nobody works on it (:without is a JSON list),
-- and this process holds its shard.
NOT EXISTS (SELECT 1 FROM confirmations q WHERE q.generation_id = g.id)
    AND g.id NOT IN (SELECT value FROM {rows}(:without)) {held g}

-- name: generations_to_submit
-- In turn by tenant, so that none waits for all that another has due: the first of each of :limit
-- tenants, then their second ones if there are not as many. No further tenant is looked at.
-- A row without its body is read too: what is due and never listed would be due at once, for ever.
-- A callback that waits for its confirmation holds the submission: upstream may have the task.
{tenants submit_at}
SELECT g.*, b.input, b.metadata, b.output, b.error
FROM (SELECT due.lap, due.tenant, i.key AS place_in_tenant, i.value AS id
    FROM (SELECT * FROM (
        SELECT tenants.lap, tenants.tenant, (SELECT json_group_array(id) FROM (
            SELECT g.id FROM generations g
            WHERE g.tenant = tenants.tenant AND g.submit_at IS NOT NULL AND g.submit_at <= :now
                AND g.submission = 'waiting' AND g.task_id IS NULL
                AND {is_free}
            ORDER BY g.submit_at LIMIT :limit)) AS ids
        FROM tenants WHERE tenants.tenant NOT IN (SELECT value FROM {rows}(:tenants))
            AND (tenants.lap = 0 OR tenants.tenant <= :after)
        LIMIT -1) WHERE ids <> '[]' LIMIT :limit) due
    CROSS JOIN {rows}(due.ids) i
    ORDER BY place_in_tenant, due.lap, due.tenant LIMIT :limit) q
{ordered} JOIN generations g ON g.id = q.id
LEFT JOIN generation_bodies b ON b.generation_id = g.id
ORDER BY q.place_in_tenant, q.lap, q.tenant;

-- name: generation_next_submit
{tenants submit_at}
SELECT min((SELECT g.submit_at FROM generations g
    WHERE g.tenant = tenants.tenant AND g.submit_at IS NOT NULL
        AND g.submission = 'waiting' AND g.task_id IS NULL
        AND {is_free}
    ORDER BY g.submit_at LIMIT 1)) AS due_at
FROM tenants WHERE tenants.tenant NOT IN (SELECT value FROM {rows}(:tenants));

-- part: shared
-- Whether another generation has the same task.
EXISTS (SELECT 1 FROM generations s WHERE s.task_id = g.task_id AND s.id <> g.id {each})
    AS is_shared

-- name: generations_of_shared
-- Open generations that share a task with one of a JSON list of ids, without their bodies.
SELECT DISTINCT s.*, '{}' AS input, '{}' AS metadata
FROM {rows}(:ids) i {ordered} JOIN generations g ON g.id = i.value
{ordered} JOIN generations s ON s.task_id = g.task_id
WHERE s.status IN ('queued', 'processing') AND s.id NOT IN (SELECT value FROM {rows}(:without))
    AND s.id NOT IN (SELECT value FROM {rows}(:ids)) {held s}
LIMIT :limit;

-- part: has_place
-- Whether a poll of the generation gets a place: `places.full_models` makes the lists. :full has
-- the polls without a free place, each as 'MODEL TENANT', or as 'MODEL ' for every tenant. MODEL
-- is empty unless the model is one of :apart, the models with a status path of their own.
CASE WHEN g.model IN (SELECT value FROM {rows}(:apart)) THEN g.model ELSE '' END
    || ' ' || g.tenant NOT IN (SELECT value FROM {rows}(:full))
AND CASE WHEN g.model IN (SELECT value FROM {rows}(:apart)) THEN g.model ELSE '' END
    || ' ' NOT IN (SELECT value FROM {rows}(:full))

-- name: generations_to_confirm
-- In turn by tenant, as generations_to_submit. :tenants and :without are JSON lists of the tenants and
-- the generations that get no further place.
SELECT g.*, b.input, b.metadata, b.output, b.error, {shared}
FROM (SELECT g.id, g.tenant,
        row_number() OVER (PARTITION BY g.tenant ORDER BY q.due_at) AS place_in_tenant
    FROM confirmations q {ordered} JOIN generations g ON g.id = q.generation_id
    WHERE q.due_at <= :now {held g} AND g.tenant NOT IN (SELECT value FROM {rows}(:tenants))
        AND g.id NOT IN (SELECT value FROM {rows}(:without))
        AND {has_place}
    ORDER BY place_in_tenant, g.tenant <= :after, g.tenant LIMIT :limit) q
{ordered} JOIN generations g ON g.id = q.id
LEFT JOIN generation_bodies b ON b.generation_id = g.id
ORDER BY q.place_in_tenant, q.tenant <= :after, q.tenant;

-- name: generations_to_poll
-- As above; of each tenant first those, of its :searched longest due, that are open past their deadline.
{tenants next_poll_at}
SELECT g.*, b.input, b.metadata, b.output, b.error, {shared}
FROM (SELECT due.lap, due.tenant, i.key AS place_in_tenant, i.value AS id
    FROM (SELECT * FROM (
        SELECT tenants.lap, tenants.tenant, (SELECT json_group_array(id) FROM (
            SELECT due.id FROM (
                SELECT g.id, g.status, g.deadline_at, g.next_poll_at FROM generations g
                WHERE g.tenant = tenants.tenant
                    AND g.next_poll_at IS NOT NULL AND g.next_poll_at <= :now {held g}
                    AND g.id NOT IN (SELECT value FROM {rows}(:without))
                    AND {has_place}
                ORDER BY g.next_poll_at LIMIT :searched) due
            ORDER BY due.status IN ('queued', 'processing') AND due.deadline_at <= :now DESC,
                due.next_poll_at LIMIT :limit)) AS ids
        FROM tenants WHERE tenants.tenant NOT IN (SELECT value FROM {rows}(:tenants))
            AND (tenants.lap = 0 OR tenants.tenant <= :after)
        LIMIT -1) WHERE ids <> '[]' LIMIT :limit) due
    CROSS JOIN {rows}(due.ids) i
    ORDER BY place_in_tenant, due.lap, due.tenant LIMIT :limit) q
{ordered} JOIN generations g ON g.id = q.id
LEFT JOIN generation_bodies b ON b.generation_id = g.id
ORDER BY q.place_in_tenant, q.lap, q.tenant;

-- name: pause_put
-- `revisions` holds the numbers that outlive a process. A clock that was ahead may have stored one.
INSERT INTO revisions (noun, number) VALUES ('upstream_paused_until', :until)
ON CONFLICT (noun) DO UPDATE SET number = CASE WHEN revisions.number > :latest THEN excluded.number
    ELSE {greatest}(revisions.number, excluded.number) END;

-- name: pause_get
SELECT number FROM revisions WHERE noun = 'upstream_paused_until';

-- name: poll_rate_get
SELECT number FROM revisions WHERE noun = 'upstream_asked_until';

-- name: poll_rate_put
INSERT INTO revisions (noun, number) VALUES ('upstream_asked_until', :free_at)
ON CONFLICT (noun) DO UPDATE SET number = excluded.number;

-- name: generation_next_poll
{tenants next_poll_at}
SELECT min((SELECT min(g.next_poll_at) FROM generations g
    WHERE g.tenant = tenants.tenant AND g.next_poll_at IS NOT NULL AND g.next_poll_at > :now {held g}))
    AS due_at
FROM tenants;

-- name: confirmation_next
SELECT min(due_at) AS due_at FROM confirmations WHERE due_at > :now {held_id generation_id};

-- name: confirmations_of
-- :ids is a JSON list of generation ids.
SELECT q.generation_id, q.due_at
FROM {rows}(:ids) i {ordered} JOIN confirmations q ON q.generation_id = i.value;

-- name: confirmations_put
INSERT INTO confirmations (generation_id, due_at) VALUES (:generation_id, :due_at)
ON CONFLICT (generation_id) DO UPDATE SET due_at = excluded.due_at;

-- name: confirmation_delay
UPDATE confirmations SET due_at = :due_at WHERE generation_id = :id AND due_at < :due_at;

-- name: confirmations_of_submissions
UPDATE confirmations AS q SET due_at = :now
WHERE due_at > :now AND EXISTS (SELECT 1 FROM generations g
    WHERE g.id = q.generation_id AND g.submission = 'sending' {held g});

-- name: confirmations_delete
DELETE FROM confirmations WHERE generation_id IN (SELECT value FROM {rows}(:ids));

-- name: confirmation_delete
DELETE FROM confirmations WHERE generation_id = :id;

-- name: generations_to_expire
SELECT g.*, b.input, b.metadata, b.output, b.error
FROM generations g LEFT JOIN generation_bodies b ON b.generation_id = g.id
WHERE g.status IN ('queued', 'processing') AND g.next_poll_at IS NULL AND g.deadline_at <= :now
    AND {is_free}
ORDER BY g.deadline_at LIMIT :limit;

-- name: generation_next_deadline
-- Every deadline is greater than 0: with a bound, SQLite's plan is a search of the index, and none of its
-- scans, which tests/store/test_plans.py looks for.
SELECT g.deadline_at AS due_at FROM generations g
WHERE g.status IN ('queued', 'processing') AND g.next_poll_at IS NULL AND g.deadline_at > 0
    AND {is_free}
ORDER BY g.deadline_at LIMIT 1;

-- name: exchange_insert
INSERT INTO exchanges (generation_id, kind, number, at, duration_ms, status_code, outcome, detail)
VALUES (:generation_id, :kind, :number, :at, :duration_ms, :status_code, :outcome, :detail)
ON CONFLICT (generation_id, kind, number) DO NOTHING;

-- name: exchanges_latest
-- The latest exchange of each kind, the latest of all last. :ids is a JSON list of generation ids.
SELECT e.* FROM {rows}(:ids) i
CROSS JOIN {rows}('["submission", "poll"]') k
{ordered} JOIN exchanges e ON e.generation_id = i.value AND e.kind = k.value
WHERE e.number = (SELECT max(number) FROM exchanges l
    WHERE l.generation_id = i.value AND l.kind = k.value)
ORDER BY e.at;

-- name: polls_latest
SELECT outcome FROM exchanges WHERE generation_id = :id AND kind = 'poll'
ORDER BY number DESC LIMIT :limit;

-- name: exchanges_of_generation
SELECT at, kind, duration_ms, status_code, outcome, detail FROM exchanges
WHERE generation_id = :generation_id ORDER BY at LIMIT 1000;

-- name: usage_add
INSERT INTO usage (tenant, day, model, generations, succeeded, failed, timed_out, canceled,
    credits)
VALUES (:tenant, :day, :model, :generations, :succeeded, :failed, :timed_out, :canceled,
    :credits)
ON CONFLICT (tenant, day, model) DO UPDATE SET
    generations = usage.generations + excluded.generations,
    succeeded = usage.succeeded + excluded.succeeded, failed = usage.failed + excluded.failed,
    timed_out = usage.timed_out + excluded.timed_out,
    canceled = usage.canceled + excluded.canceled, credits = usage.credits + excluded.credits;

-- name: usage_fold
-- PostgreSQL overrides this. On SQLite nothing waits to be added up, so there is no row.
SELECT 0 AS count WHERE :limit < 0;

-- name: usage_list
SELECT day, model, generations, succeeded, failed, timed_out, canceled, credits FROM usage
WHERE tenant = :tenant AND day >= :since AND day <= :until AND model = coalesce(:model, model)
ORDER BY day DESC, model LIMIT 10000;

-- name: generations_old
-- The next generations from before a time. One can be deleted once it has ended, no poll,
-- confirmation or callback is expected any more, and its events are deleted.
-- One whose columns are no JSON stays, but it holds up no other.
SELECT g.id, g.tenant, g.status IN ('succeeded', 'failed', 'timed_out', 'canceled')
    AND {is_json g.event_ids}
    AND g.next_poll_at IS NULL AND g.completed_at < :before AND g.deadline_at < :deadline_before
    AND NOT EXISTS (SELECT 1 FROM confirmations q WHERE q.generation_id = g.id {each})
    AND NOT EXISTS (SELECT 1
        FROM {rows}(CASE WHEN {is_json g.event_ids} THEN g.event_ids ELSE '[]' END) i
        {ordered} JOIN events e ON e.id = i.value {each}) AS is_deletable
FROM generations g WHERE g.id > :after AND g.id < :before_id ORDER BY g.id LIMIT :limit;
-- lock, then look again: g

-- name: generation_delete
DELETE FROM generations WHERE id = :id;

-- name: generation_body_delete
DELETE FROM generation_bodies WHERE generation_id = :id;

-- name: generation_metadata_delete
DELETE FROM generation_metadata WHERE (tenant, name, value, generation_id) IN (
    SELECT :tenant, m.key, m.value, :id FROM generation_bodies b, {pairs}(CAST(
        CASE WHEN {is_json b.metadata} THEN b.metadata ELSE '{}' END AS {json})) m
    WHERE b.generation_id = :id);

-- name: exchanges_delete
DELETE FROM exchanges WHERE (generation_id, kind, number) IN (
    SELECT generation_id, kind, number FROM exchanges WHERE generation_id = :id LIMIT :most);
