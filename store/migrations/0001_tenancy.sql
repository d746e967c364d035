-- Row-level security by tenant, for every table of the platform and of the components.

-- Call it once on each new table: SELECT enable_tenancy('things'). The table must have a column tenant_id text.
-- The tenant is the setting app.tenant of the transaction; without one, nothing is seen and nothing can be written.
CREATE FUNCTION enable_tenancy(target regclass) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('ALTER TABLE %s ALTER COLUMN tenant_id SET NOT NULL', target);
    EXECUTE format('ALTER TABLE %s ADD CONSTRAINT tenant_is_named CHECK (tenant_id <> '''')', target);
    EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', target);
    EXECUTE format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', target);
    EXECUTE format(
        'CREATE POLICY one_tenant ON %s USING (tenant_id = current_setting(''app.tenant'', true)) '
        'WITH CHECK (tenant_id = current_setting(''app.tenant'', true))', target);
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %s TO faas_app', target);
END $$;
REVOKE ALL ON FUNCTION enable_tenancy(regclass) FROM PUBLIC;
