DO $no_bypass$
DECLARE
    stranger pg_catalog.text;
BEGIN
    FOR stranger IN
        SELECT rolname FROM pg_catalog.pg_authid
         WHERE rolbypassrls AND NOT pg_catalog.pg_has_role(oid, {privileged_text}, 'MEMBER')
           AND NOT pg_catalog.starts_with(rolname::pg_catalog.text, 'pg_')
    LOOP
        EXECUTE pg_catalog.format('ALTER ROLE %I NOBYPASSRLS', stranger);
    END LOOP;
END
$no_bypass$
