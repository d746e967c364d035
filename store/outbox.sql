-- name: add
INSERT INTO outbox (tenant_id, event_id, subject, headers, body)
SELECT $1, e.* FROM unnest($2::uuid[], $3::text[], $4::jsonb[], $5::bytea[]) AS e

-- name: remove
SELECT remove_published($1, $2)
