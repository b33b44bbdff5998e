DO $revoke$
DECLARE
    victim pg_catalog.text := pg_catalog.current_setting('compute_ctl.dropped_role');
    given record;
BEGIN
    FOR given IN
        WITH grants (kind, object, part, owner, acl) AS (
            SELECT CASE c.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END,
                   pg_catalog.format('%I.%I', n.nspname, c.relname), '', c.relowner, c.relacl
              FROM pg_catalog.pg_class c
              JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
             WHERE c.relkind IN ('r', 'v', 'm', 'f', 'p', 'S')
            UNION ALL
            SELECT 'TABLE', pg_catalog.format('%I.%I', n.nspname, c.relname),
                   pg_catalog.format(' (%I)', a.attname), c.relowner, a.attacl
              FROM pg_catalog.pg_attribute a
              JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
              JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
             WHERE NOT a.attisdropped
            UNION ALL
            SELECT 'SCHEMA', pg_catalog.format('%I', n.nspname), '', n.nspowner, n.nspacl
              FROM pg_catalog.pg_namespace n
            UNION ALL
            SELECT 'ROUTINE', p.oid::pg_catalog.regprocedure::pg_catalog.text, '', p.proowner, p.proacl
              FROM pg_catalog.pg_proc p
            UNION ALL
            SELECT 'TYPE', t.oid::pg_catalog.regtype::pg_catalog.text, '', t.typowner, t.typacl
              FROM pg_catalog.pg_type t
            UNION ALL
            SELECT 'LANGUAGE', pg_catalog.format('%I', l.lanname), '', l.lanowner, l.lanacl
              FROM pg_catalog.pg_language l
            UNION ALL
            SELECT 'FOREIGN DATA WRAPPER', pg_catalog.format('%I', w.fdwname), '', w.fdwowner, w.fdwacl
              FROM pg_catalog.pg_foreign_data_wrapper w
            UNION ALL
            SELECT 'FOREIGN SERVER', pg_catalog.format('%I', s.srvname), '', s.srvowner, s.srvacl
              FROM pg_catalog.pg_foreign_server s
            UNION ALL
            SELECT 'LARGE OBJECT', l.oid::pg_catalog.text, '', l.lomowner, l.lomacl
              FROM pg_catalog.pg_largeobject_metadata l
            UNION ALL
            SELECT 'DATABASE', pg_catalog.format('%I', d.datname), '', d.datdba, d.datacl
              FROM pg_catalog.pg_database d
            UNION ALL
            SELECT 'TABLESPACE', pg_catalog.format('%I', t.spcname), '', t.spcowner, t.spcacl
              FROM pg_catalog.pg_tablespace t
            UNION ALL
            -- Settings belong to the first superuser. Names are words with dots between them.
            SELECT 'PARAMETER', pg_catalog.array_to_string(ARRAY(
                       SELECT pg_catalog.format('%I', word)
                         FROM pg_catalog.unnest(pg_catalog.string_to_array(p.parname, '.')) word), '.'),
                   '', 10, p.paracl
              FROM pg_catalog.pg_parameter_acl p
        )
        SELECT g.kind, g.object, g.part, giver.rolname AS giver, e.privilege_type AS privilege,
               CASE e.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_catalog.format('%I', receiver.rolname) END AS receiver
          FROM grants g
         CROSS JOIN LATERAL pg_catalog.aclexplode(g.acl) e
          JOIN pg_catalog.pg_authid giver ON giver.oid = e.grantor
          LEFT JOIN pg_catalog.pg_authid receiver ON receiver.oid = e.grantee
         WHERE g.acl IS NOT NULL
           AND (receiver.rolname::pg_catalog.text = victim OR giver.rolname::pg_catalog.text = victim)
           AND e.grantor <> g.owner
         -- While it still holds what it has passed on.
         ORDER BY giver.rolname::pg_catalog.text <> victim
    LOOP
        EXECUTE pg_catalog.format('SET LOCAL ROLE %I', given.giver);
        -- One privilege at a time: for several at once the server may act as another role the giver belongs to.
        EXECUTE pg_catalog.format(
            'REVOKE %s%s ON %s %s FROM %s CASCADE',
            given.privilege, given.part, given.kind, given.object, given.receiver);
        EXECUTE 'RESET ROLE';
    END LOOP;
END
$revoke$
