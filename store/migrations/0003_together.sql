-- Many messages of one tenant in one transaction: the statement, the round trip and the disk are shared.

-- finish_message for each, in the order given; whose claim is not its owner's any more gets false and writes nothing.
-- event_of is the position (from 1) of the message that an event belongs to.
CREATE FUNCTION finish_messages(
    tenant text, operations text[], keys text[], owners text[], replies bytea[], faults bytea[],
    ended_jobs text[], statuses text[], attempts integer[], results jsonb[], job_faults jsonb[],
    event_of integer[], event_ids uuid[], subjects text[], event_headers jsonb[], bodies bytea[]
) RETURNS boolean[] LANGUAGE plpgsql AS $$
DECLARE
    ours boolean[];
BEGIN
    FOR n IN 1 .. cardinality(keys) LOOP
        ours[n] := finish_message(
            tenant, operations[n], keys[n], owners[n], replies[n], faults[n],
            ended_jobs[n], statuses[n], attempts[n], results[n], job_faults[n], '{}', '{}', '{}', '{}');
    END LOOP;
    IF cardinality(event_ids) > 0 THEN
        INSERT INTO outbox (tenant_id, event_id, subject, headers, body)
        SELECT tenant, e.id, e.subject, e.headers, e.body
        FROM unnest(event_of, event_ids, subjects, event_headers, bodies) AS e (message, id, subject, headers, body)
        WHERE ours[e.message];
    END IF;
    RETURN ours;
END $$;
