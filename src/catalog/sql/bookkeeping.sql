CREATE SCHEMA IF NOT EXISTS neon_migration;

CREATE TABLE IF NOT EXISTS neon_migration.migration_id (
    key pg_catalog.int4 NOT NULL PRIMARY KEY,
    id pg_catalog.int8 NOT NULL DEFAULT 0
);

INSERT INTO neon_migration.migration_id (key, id) VALUES (0, 0) ON CONFLICT (key) DO NOTHING;

CREATE TABLE IF NOT EXISTS neon_migration.prepared_database (
    database pg_catalog.oid NOT NULL PRIMARY KEY,
    mark pg_catalog.text NOT NULL
);

ALTER SCHEMA neon_migration OWNER TO CURRENT_USER;

REVOKE ALL ON SCHEMA neon_migration FROM PUBLIC;
