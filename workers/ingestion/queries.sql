-- name: insert_file
INSERT INTO files (tenant_id, file_id, name, size, sha256, type, collection, source_id, metadata, status, stages, job_id)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 'received', $10, $11)
ON CONFLICT (tenant_id, file_id) DO NOTHING
RETURNING file_id;

-- name: get_file
SELECT file_id, name, size, sha256, type, collection, source_id, metadata, status, stages, reason, document_id, chunks,
       pages, job_id, index_job_id, created_at
FROM files WHERE tenant_id = $1 AND file_id = $2;

-- name: newest_files
SELECT file_id, name, size, sha256, type, collection, source_id, metadata, status, stages, reason, document_id, chunks,
       pages, job_id, index_job_id, created_at
FROM files
WHERE tenant_id = $1 AND ($2::text IS NULL OR collection = $2) AND ($3::text IS NULL OR status = $3)
  AND ($4::timestamptz IS NULL OR (created_at, file_id) < ($4, $5::text))
ORDER BY created_at DESC, file_id DESC LIMIT $6;

-- An ended file stays as it ended: the statements below touch one that is under way only.

-- name: set_stage
UPDATE files SET status = 'processing', stages = stages || jsonb_build_object($3::text, $4::jsonb)
WHERE tenant_id = $1 AND file_id = $2 AND status IN ('received', 'processing');

-- name: set_extracted
UPDATE files SET type = $3, pages = $4, stages = stages || jsonb_build_object('extracted', $5::jsonb)
WHERE tenant_id = $1 AND file_id = $2 AND status IN ('received', 'processing')
  AND stages -> 'extracted' ->> 'status' IS DISTINCT FROM 'done'
RETURNING file_id;

-- name: set_index_job
UPDATE files SET index_job_id = $3, stages = stages || jsonb_build_object('indexed', $4::jsonb)
WHERE tenant_id = $1 AND file_id = $2 AND status IN ('received', 'processing');

-- name: set_indexed
UPDATE files SET status = 'indexed', stages = stages || jsonb_build_object('indexed', $3::jsonb), document_id = $4, chunks = $5
WHERE tenant_id = $1 AND file_id = $2 AND status IN ('received', 'processing');

-- name: quarantine
UPDATE files SET status = 'quarantined', stages = stages || jsonb_build_object($3::text, $4::jsonb), reason = $5
WHERE tenant_id = $1 AND file_id = $2 AND status IN ('received', 'processing')
RETURNING file_id;
