-- What a superuser runs once, connected to the platform's own database (it may be run again: it changes nothing then).
-- Plain SQL for any client. Passwords are the caller's: ALTER ROLE faas_owner PASSWORD '...', and so on.

DO $$
DECLARE
    role_name text;
BEGIN
    FOREACH role_name IN ARRAY ARRAY['faas_owner', 'faas_app', 'faas_keeper'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role_name) THEN
            EXECUTE format(
                'CREATE ROLE %I LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS NOINHERIT', role_name);
        END IF;
    END LOOP;
END $$;

CREATE EXTENSION IF NOT EXISTS vector;

-- faas_owner makes the tables, and nobody else makes anything.
ALTER SCHEMA public OWNER TO faas_owner;
REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO faas_app, faas_keeper;

-- faas_app needs temporary tables: COPY is refused under row-level security.
DO $$
BEGIN
    EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO faas_owner, faas_app, faas_keeper', current_database());
    EXECUTE format('GRANT TEMPORARY ON DATABASE %I TO faas_app', current_database());
END $$;
