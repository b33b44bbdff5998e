DO $inherit$
DECLARE
    member pg_catalog.text;
BEGIN
    FOR member IN
        SELECT rolname FROM pg_catalog.pg_authid
         WHERE pg_catalog.pg_has_role(oid, {privileged_text}, 'MEMBER') AND NOT rolinherit
    LOOP
        EXECUTE pg_catalog.format('ALTER ROLE %I INHERIT', member);
    END LOOP;
END
$inherit$
