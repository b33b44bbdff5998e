DO $prepare$
DECLARE
    new_owner pg_catalog.text := pg_catalog.current_setting('compute_ctl.owner');
    privileged pg_catalog.text := pg_catalog.current_setting('compute_ctl.privileged_role');
    present_owner pg_catalog.text;
BEGIN
    SELECT r.rolname INTO present_owner
      FROM pg_catalog.pg_namespace n
      JOIN pg_catalog.pg_authid r ON r.oid = n.nspowner
     WHERE n.nspname = 'public';
    IF present_owner IS NULL THEN
        RETURN;
    END IF;
    IF present_owner IN (CURRENT_USER, 'cloud_admin', 'zenith_admin') AND present_owner <> new_owner THEN
        EXECUTE pg_catalog.format('ALTER SCHEMA public OWNER TO %I', new_owner);
    END IF;
    IF pg_catalog.current_setting('compute_ctl.web_access') = 'on' THEN
        EXECUTE 'GRANT CREATE ON SCHEMA public TO web_access';
    END IF;
    EXECUTE pg_catalog.format(
        'ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON TABLES TO %I WITH GRANT OPTION', privileged);
    EXECUTE pg_catalog.format(
        'ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON SEQUENCES TO %I WITH GRANT OPTION', privileged);
END
$prepare$
