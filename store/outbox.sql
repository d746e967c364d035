-- name: add
INSERT INTO outbox (tenant_id, event_id, subject, headers, body)
SELECT $1, e.* FROM unnest($2::uuid[], $3::text[], $4::jsonb[], $5::bytea[]) AS e

-- name: remove
SELECT remove_published($1, $2)

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
SET attempts = attempts + 1, due_at = now() + least(interval '5 seconds' * 2 ^ attempts, interval '1 hour')
WHERE event_id = ANY($1)
