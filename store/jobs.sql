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
