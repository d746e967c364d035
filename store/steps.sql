-- name: get
SELECT result FROM steps WHERE tenant_id = $1 AND job_id = $2 AND name = $3

-- name: put
INSERT INTO steps (tenant_id, job_id, name, result) VALUES ($1, $2, $3, $4)
ON CONFLICT (tenant_id, job_id, name) DO NOTHING

-- name: clear
DELETE FROM steps WHERE tenant_id = $1 AND job_id = $2
