-- name: claim
SELECT c.state, c.attempts, c.faults, c.hand_backs, c.reply, c.fault
FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::interval[])
    WITH ORDINALITY AS asked (operation, key, digest, owner, lease, n)
CROSS JOIN LATERAL claim_key($1, operation, key, digest, owner, lease) AS c
ORDER BY asked.n

-- name: renew
UPDATE inbox SET lease_until = clock_timestamp() + $5::interval
WHERE tenant_id = $1 AND operation = $2 AND key = $3 AND owner = $4 AND done_at IS NULL

-- name: release
UPDATE inbox
SET owner = '', lease_until = clock_timestamp(), faults = faults + $5, hand_backs = hand_backs + $6
WHERE tenant_id = $1 AND operation = $2 AND key = $3 AND owner = $4 AND done_at IS NULL

-- name: finish
UPDATE inbox SET done_at = clock_timestamp(), reply = $5, fault = $6
WHERE tenant_id = $1 AND operation = $2 AND key = $3 AND owner = $4 AND done_at IS NULL

-- name: crashes
SELECT attempts - faults - hand_backs FROM inbox
WHERE tenant_id = $1 AND operation = $2 AND key = $3 AND done_at IS NULL

-- name: look
SELECT CASE
        WHEN i.operation IS NULL THEN 'unknown'
        WHEN i.done_at IS NOT NULL THEN 'done'
        WHEN i.lease_until > clock_timestamp() THEN 'working'
        ELSE 'open'
    END AS state
FROM unnest($2::text[], $3::text[]) WITH ORDINALITY AS asked (operation, key, n)
LEFT JOIN inbox AS i ON i.tenant_id = $1 AND i.operation = asked.operation AND i.key = asked.key
ORDER BY asked.n
