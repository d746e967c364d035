-- name: running
INSERT INTO jobs AS j (tenant_id, job_id, component, operation, status, attempt, headers, body, started_at)
VALUES ($1, $2, $3, $4, 'running', $5, $6, $7, now())
ON CONFLICT (tenant_id, job_id) DO UPDATE
    SET status = 'running', attempt = greatest(j.attempt, excluded.attempt), fault = NULL,
        headers = excluded.headers, body = excluded.body, started_at = coalesce(j.started_at, now())
    WHERE j.status IN ('queued', 'running')
RETURNING cancel_requested

-- name: progress
UPDATE jobs SET progress = $3
WHERE tenant_id = $1 AND job_id = $2 AND status = 'running'
RETURNING cancel_requested

-- name: finish
SELECT finish_job($1, $2, $3, $4, $5, $6, $7)

-- name: cancel_requested
SELECT cancel_requested FROM jobs WHERE tenant_id = $1 AND job_id = $2

-- name: request_cancel
INSERT INTO jobs AS j (tenant_id, job_id, component, operation, status, cancel_requested)
VALUES ($1, $2, $3, $4, 'queued', true)
ON CONFLICT (tenant_id, job_id) DO UPDATE SET cancel_requested = true
    WHERE j.status IN ('queued', 'running')
RETURNING j.*

-- name: get
SELECT * FROM jobs WHERE tenant_id = $1 AND job_id = $2

-- name: newest
SELECT * FROM jobs
WHERE tenant_id = $1
    AND ($2::text IS NULL OR component = $2)
    AND ($3::text IS NULL OR status = $3)
    AND ($4::timestamptz IS NULL OR (created_at, job_id) < ($4, $5::text))
ORDER BY created_at DESC, job_id DESC
LIMIT $6

-- name: reopen
UPDATE jobs AS j
SET status = 'queued', attempt = 0, progress = NULL, result = NULL, fault = NULL, cancel_requested = false,
    started_at = NULL, finished_at = NULL
FROM (SELECT * FROM jobs WHERE tenant_id = $1 AND job_id = $2 AND status = 'failed' FOR UPDATE) AS before
WHERE j.tenant_id = before.tenant_id AND j.job_id = before.job_id
RETURNING before.*

-- name: restore
UPDATE jobs SET status = 'failed', attempt = $3, fault = $4, started_at = $5, finished_at = $6
WHERE tenant_id = $1 AND job_id = $2 AND status = 'queued'
