-- What the keeper's role does, over all tenants.

-- name: due
SELECT tenant_id, event_id, subject, headers, body, attempts FROM outbox
WHERE due_at <= now()
ORDER BY due_at
LIMIT $1
FOR UPDATE SKIP LOCKED

-- name: relayed
DELETE FROM outbox WHERE event_id = ANY($1)

-- name: postpone
UPDATE outbox
SET attempts = attempts + 1, due_at = now() + interval '5 seconds' * 2 ^ least(attempts, 6)
WHERE event_id = ANY($1)

-- name: forget_inbox
DELETE FROM inbox AS i
USING (
    SELECT tenant_id, operation, key FROM inbox
    WHERE created_at < now() - $1::interval AND coalesce(done_at, lease_until) < now() - $1::interval
    ORDER BY created_at
    LIMIT $2
) AS old
WHERE i.tenant_id = old.tenant_id AND i.operation = old.operation AND i.key = old.key

-- name: forget_jobs
DELETE FROM jobs AS j
USING (
    SELECT tenant_id, job_id FROM jobs
    WHERE created_at < now() - $1::interval AND finished_at < now() - $1::interval
    ORDER BY created_at
    LIMIT $2
) AS old
WHERE j.tenant_id = old.tenant_id AND j.job_id = old.job_id

-- name: forget_steps
DELETE FROM steps AS s
USING (
    SELECT o.tenant_id, o.job_id, o.name FROM steps AS o
    WHERE o.created_at < now() - $1::interval
        AND NOT EXISTS (
            SELECT FROM jobs AS j
            WHERE j.tenant_id = o.tenant_id AND j.job_id = o.job_id AND j.status IN ('queued', 'running')
        )
    ORDER BY o.created_at
    LIMIT $2
) AS old
WHERE s.tenant_id = old.tenant_id AND s.job_id = old.job_id AND s.name = old.name

-- name: running_since_before
SELECT tenant_id, job_id, component, operation, headers, body FROM jobs
WHERE status = 'running' AND started_at < $1 AND body IS NOT NULL AND (tenant_id, job_id) > ($2, $3)
ORDER BY tenant_id, job_id
LIMIT $4

-- name: unclaimed
SELECT j.tenant_id, j.job_id, j.component, j.operation, j.status, j.attempt, j.cancel_requested, j.headers
FROM jobs AS j
WHERE j.status IN ('queued', 'running') AND coalesce(j.started_at, j.created_at) < now() - $1::interval
    AND (j.tenant_id, j.job_id) > ($2, $3)
    AND NOT EXISTS (
        SELECT FROM inbox AS i
        WHERE i.tenant_id = j.tenant_id AND i.operation = j.component || '.' || j.operation AND i.key = j.job_id
            AND i.done_at IS NULL AND i.lease_until > now() - $1::interval
    )
ORDER BY j.tenant_id, j.job_id
LIMIT $4

-- name: end_lost
UPDATE jobs SET status = $5, fault = $6, headers = NULL, body = NULL, finished_at = now()
WHERE tenant_id = $1 AND job_id = $2 AND status = $3 AND attempt = $4
RETURNING job_id
