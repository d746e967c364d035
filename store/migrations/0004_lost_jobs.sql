-- The keeper ends jobs whose message is gone: nobody else would ever look at their rows again.
GRANT SELECT (attempt, cancel_requested), UPDATE (status, fault, headers, body, finished_at) ON jobs TO faas_keeper;

-- Serves what jobs_running did, and the search for the lost.
CREATE INDEX jobs_unfinished ON jobs (tenant_id, job_id) WHERE status IN ('queued', 'running');
DROP INDEX jobs_running;
