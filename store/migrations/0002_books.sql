-- The tables that every worker writes: inbox, outbox, jobs, steps. Rows live 8 days, always longer than the streams.

-- One row for each idempotency key: who works on it now, or how it ended. The lease is read by the database's clock only.
-- crashes = attempts - 1 - faults - hand_backs. reply and fault are as they went out (at most 64 KiB).
CREATE TABLE inbox (
    tenant_id text NOT NULL,
    operation text NOT NULL,
    key text NOT NULL CHECK (octet_length(key) BETWEEN 1 AND 1024),
    digest text NOT NULL,
    owner text NOT NULL,
    lease_until timestamptz NOT NULL,
    attempts integer NOT NULL DEFAULT 1,
    faults integer NOT NULL DEFAULT 0,
    hand_backs integer NOT NULL DEFAULT 0,
    reply bytea,
    fault bytea,
    created_at timestamptz NOT NULL DEFAULT now(),
    done_at timestamptz,
    PRIMARY KEY (tenant_id, operation, key)
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX inbox_by_age ON inbox (created_at);
SELECT enable_tenancy('inbox');

-- Facts on their way to the broker. A row is gone once its message is stored there; due_at is when the relay may take it.
CREATE TABLE outbox (
    tenant_id text NOT NULL,
    event_id uuid PRIMARY KEY,
    subject text NOT NULL,
    headers jsonb NOT NULL,
    body bytea NOT NULL,
    attempts integer NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    due_at timestamptz NOT NULL DEFAULT now() + interval '5 seconds'
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX outbox_by_due ON outbox (due_at);
SELECT enable_tenancy('outbox');

-- What became of a job. headers and body are its message while it is not finished, to publish it again from here.
CREATE TABLE jobs (
    tenant_id text NOT NULL,
    job_id text NOT NULL,
    component text NOT NULL,
    operation text NOT NULL,
    status text NOT NULL CHECK (status IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')),
    attempt integer NOT NULL DEFAULT 0,
    progress jsonb,
    result jsonb,
    fault jsonb,
    cancel_requested boolean NOT NULL DEFAULT false,
    headers jsonb,
    body bytea,
    created_at timestamptz NOT NULL DEFAULT now(),
    started_at timestamptz,
    finished_at timestamptz,
    PRIMARY KEY (tenant_id, job_id)
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX jobs_newest ON jobs (tenant_id, created_at DESC, job_id DESC);
CREATE INDEX jobs_by_age ON jobs (created_at);
CREATE INDEX jobs_running ON jobs (tenant_id, job_id) WHERE status = 'running';
SELECT enable_tenancy('jobs');

-- Results of a job's steps, so that a redelivered job does not do them again.
CREATE TABLE steps (
    tenant_id text NOT NULL,
    job_id text NOT NULL,
    name text NOT NULL CHECK (octet_length(name) BETWEEN 1 AND 512),
    result bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, job_id, name)
);
CREATE INDEX steps_by_age ON steps (created_at);
SELECT enable_tenancy('steps');

-- The keeper: every tenant's rows, of these four tables only. It relays, publishes again and removes; it makes nothing.
CREATE POLICY keeper ON inbox TO faas_keeper USING (true);
CREATE POLICY keeper ON outbox TO faas_keeper USING (true) WITH CHECK (true);
CREATE POLICY keeper ON jobs TO faas_keeper USING (true);
CREATE POLICY keeper ON steps TO faas_keeper USING (true);
GRANT SELECT (tenant_id, operation, key, lease_until, created_at, done_at), DELETE ON inbox TO faas_keeper;
GRANT SELECT, DELETE, UPDATE (attempts, due_at) ON outbox TO faas_keeper;
GRANT SELECT (tenant_id, job_id, component, operation, status, headers, body, created_at, started_at, finished_at),
    DELETE ON jobs TO faas_keeper;
GRANT SELECT (tenant_id, job_id, name, created_at), DELETE ON steps TO faas_keeper;

-- One statement = one transaction = one round trip, for what every message does. Not a CTE: the statements of a
-- function run in order, each seeing the setting made before it.
CREATE FUNCTION act_for(tenant text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF coalesce(current_setting('app.tenant', true), '') NOT IN ('', tenant) THEN
        RAISE EXCEPTION 'the transaction belongs to another tenant';
    END IF;
    PERFORM set_config('app.tenant', tenant, true);
END $$;

-- state: claimed, waiting, done, conflict. A lost claim is made again, so it does not wait for the disk.
CREATE FUNCTION claim_key(
    tenant text, wanted_operation text, wanted_key text, wanted_digest text, wanted_owner text, lease interval,
    OUT state text, OUT attempts integer, OUT faults integer, OUT hand_backs integer, OUT reply bytea, OUT fault bytea
) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    known inbox;
BEGIN
    PERFORM act_for(tenant);
    PERFORM set_config('synchronous_commit', 'off', true);
    INSERT INTO inbox AS i (tenant_id, operation, key, digest, owner, lease_until)
    VALUES (tenant, wanted_operation, wanted_key, wanted_digest, wanted_owner, clock_timestamp() + lease)
    ON CONFLICT (tenant_id, operation, key) DO UPDATE
        SET owner = excluded.owner,
            lease_until = excluded.lease_until,
            attempts = i.attempts + (i.owner <> excluded.owner)::integer
        WHERE i.done_at IS NULL AND i.digest = excluded.digest
            AND (i.lease_until <= clock_timestamp() OR i.owner = excluded.owner)
    RETURNING * INTO known;
    IF FOUND THEN
        state := 'claimed';
    ELSE
        SELECT * INTO known FROM inbox WHERE tenant_id = tenant AND operation = wanted_operation AND key = wanted_key;
        state := CASE
            WHEN NOT FOUND THEN 'waiting'
            WHEN known.digest <> wanted_digest THEN 'conflict'
            WHEN known.done_at IS NULL THEN 'waiting'
            ELSE 'done'
        END;
        reply := known.reply;
        fault := known.fault;
    END IF;
    attempts := known.attempts;
    faults := known.faults;
    hand_backs := known.hand_backs;
END $$;

-- The end of a message in one statement: the claim as done, the job's row, the events. False, and nothing is written,
-- when the claim is not the owner's any more. job_id NULL: not a job.
CREATE FUNCTION finish_message(
    tenant text, wanted_operation text, wanted_key text, wanted_owner text, kept_reply bytea, kept_fault bytea,
    ended_job text, ended_status text, ended_attempt integer, ended_result jsonb, ended_fault jsonb,
    event_ids uuid[], subjects text[], event_headers jsonb[], bodies bytea[]
) RETURNS boolean LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    PERFORM act_for(tenant);
    UPDATE inbox SET done_at = clock_timestamp(), reply = kept_reply, fault = kept_fault
    WHERE tenant_id = tenant AND operation = wanted_operation AND key = wanted_key AND owner = wanted_owner
        AND done_at IS NULL;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    IF ended_job IS NOT NULL THEN
        PERFORM finish_job(tenant, ended_job, wanted_operation, ended_status, ended_attempt, ended_result, ended_fault);
    END IF;
    IF cardinality(event_ids) > 0 THEN
        INSERT INTO outbox (tenant_id, event_id, subject, headers, body)
        SELECT tenant, e.* FROM unnest(event_ids, subjects, event_headers, bodies) AS e;
    END IF;
    RETURN true;
END $$;

-- operation_name is `<component>.<operation>`.
CREATE FUNCTION finish_job(
    tenant text, ended_job text, operation_name text, ended_status text, ended_attempt integer, ended_result jsonb,
    ended_fault jsonb
) RETURNS void LANGUAGE sql AS $$
    INSERT INTO jobs AS j (tenant_id, job_id, component, operation, status, attempt, result, fault, started_at, finished_at)
    VALUES (tenant, ended_job, split_part(operation_name, '.', 1), split_part(operation_name, '.', 2), ended_status,
        ended_attempt, ended_result, ended_fault, now(), clock_timestamp())
    ON CONFLICT (tenant_id, job_id) DO UPDATE
        SET status = excluded.status, attempt = excluded.attempt, result = excluded.result, fault = excluded.fault,
            headers = NULL, body = NULL, started_at = coalesce(j.started_at, excluded.started_at),
            finished_at = excluded.finished_at
$$;

CREATE FUNCTION remove_published(tenant text, event_ids uuid[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM act_for(tenant);
    PERFORM set_config('synchronous_commit', 'off', true);
    DELETE FROM outbox WHERE event_id = ANY(event_ids);
END $$;
