//! A change of nearly everything: a cluster before it, the spec that asks for it, and a picture of the catalog.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value, json};
use tokio_postgres::{Client, NoTls};

use crate::support::pg::{ADMIN, Server};

/// Runs something asynchronous.
pub(crate) fn wait<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// A cluster before the change, stopped.
pub(crate) fn before() -> Server {
    let mut server = Server::start("wal_level = logical\nautovacuum = off\nmax_wal_size = 64MB");
    wait(async {
        for (database, sql) in [
            (
                "postgres",
                "CREATE ROLE old LOGIN PASSWORD 'md5aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa';
                 CREATE ROLE kept LOGIN; CREATE ROLE first LOGIN; CREATE ROLE second LOGIN; CREATE ROLE bye LOGIN;",
            ),
            ("postgres", "CREATE DATABASE was OWNER old"),
            ("postgres", "CREATE DATABASE doomed OWNER old IS_TEMPLATE true"),
            ("postgres", "CREATE DATABASE one OWNER first"),
            ("postgres", "CREATE DATABASE two OWNER second"),
            (
                "doomed",
                "CREATE SUBSCRIPTION inside CONNECTION 'dbname=nowhere' PUBLICATION p \
                 WITH (connect = false, slot_name = 'theirs')",
            ),
            (
                "one",
                "CREATE TABLE public.mine (id int); ALTER TABLE public.mine OWNER TO bye;
                 CREATE TABLE public.theirs (id int); ALTER TABLE public.theirs OWNER TO first;
                 SET ROLE first; GRANT SELECT ON public.theirs TO kept WITH GRANT OPTION;
                 SET ROLE kept; GRANT SELECT ON public.theirs TO bye; RESET ROLE;
                 ALTER DEFAULT PRIVILEGES FOR ROLE first GRANT SELECT ON TABLES TO bye",
            ),
            (
                "one",
                "CREATE SUBSCRIPTION inherited CONNECTION 'dbname=nowhere' PUBLICATION p \
                 WITH (connect = false, slot_name = 'theirs_too')",
            ),
            ("two", "CREATE SCHEMA left_over AUTHORIZATION bye; CREATE TABLE left_over.t ()"),
        ] {
            let client = client(server.socket_dir(), server.port(), database).await;
            // Statements that may not be in a transaction stand alone.
            client.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        }
    });
    server.stop();
    server
}

/// The spec that asks for the change. What else belongs into a spec is the caller's.
pub(crate) fn goal() -> Value {
    json!({
        "format_version": 1.0,
        "suspend_timeout_seconds": -1,
        "drop_subscriptions_before_start": true,
        "reconfigure_concurrency": 2,
        "cluster": {
            "roles": [
                { "name": "new", "encrypted_password": "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb" },
                { "name": "kept", "encrypted_password": "cccccccccccccccccccccccccccccccc", "options": [
                    { "name": "CONNECTION LIMIT", "value": "5", "vartype": "integer" },
                    { "name": "IN ROLE", "value": "second", "vartype": "enum" },
                ] },
                { "name": "first" },
                { "name": "second" },
                { "name": "third" },
            ],
            "databases": [
                { "name": "is", "owner": "new" },
                { "name": "one", "owner": "second" },
                { "name": "two", "owner": "second", "options": [
                    { "name": "CONNECTION LIMIT", "value": "7", "vartype": "integer" },
                ] },
                { "name": "fresh", "owner": "third" },
            ],
            "settings": [
                { "name": "shared_preload_libraries", "value": "pg_stat_statements", "vartype": "string" },
            ],
        },
        "delta_operations": [
            { "action": "rename_role", "name": "old", "new_name": "new" },
            { "action": "rename_db", "name": "was", "new_name": "is" },
            { "action": "delete_db", "name": "doomed" },
            { "action": "delete_role", "name": "bye" },
        ],
    })
}

/// The steps the change is made of.
pub(crate) const STEPS: [&str; 21] = [
    "alter_database",
    "alter_database_owner",
    "alter_role",
    "create_bookkeeping",
    "create_database",
    "create_extension",
    "create_health_check",
    "create_privileged_role",
    "create_role",
    "create_schema",
    "drop_database",
    "drop_role",
    "drop_subscriptions",
    "grant_database",
    "grant_role",
    "mark_prepared",
    "prepare_database",
    "record_subscriptions_dropped",
    "release_owned",
    "rename_database",
    "rename_role",
];

/// All of the catalog that is somebody's doing, in words without numbers, so that two clusters which were changed in
/// different ways compare equal.
pub(crate) async fn picture(socket: &Path, port: u16) -> BTreeSet<String> {
    const SHARED: [&str; 4] = [
        "SELECT 'role ' || a.rolname || ' ' || concat_ws(',', rolsuper, rolinherit, rolcreaterole, rolcreatedb,
            rolcanlogin, rolreplication, rolbypassrls, rolconnlimit, rolpassword, rolvaliduntil)
           FROM pg_authid a",
        "SELECT concat_ws(' ', 'member', m.member::regrole, 'of', m.roleid::regrole, m.admin_option)
           FROM pg_auth_members m",
        "SELECT concat_ws(' ', 'database', datname, datdba::regrole, datallowconn, datistemplate, datconnlimit,
            (SELECT string_agg(a::text, ' ' ORDER BY a::text) FROM unnest(datacl) a))
           FROM pg_database",
        "SELECT concat_ws(' ', 'settings', d.datname, s.setrole::regrole, s.setconfig)
           FROM pg_db_role_setting s LEFT JOIN pg_database d ON d.oid = s.setdatabase",
    ];
    const INSIDE: [&str; 7] = [
        "SELECT concat_ws(' ', 'schema', nspname, nspowner::regrole,
            (SELECT string_agg(a::text, ' ' ORDER BY a::text) FROM unnest(nspacl) a))
           FROM pg_namespace WHERE nspname !~ '^pg_'",
        "SELECT concat_ws(' ', 'relation', c.oid::regclass, c.relkind, c.relowner::regrole,
            (SELECT string_agg(a::text, ' ' ORDER BY a::text) FROM unnest(c.relacl) a))
           FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
          WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')",
        "SELECT concat_ws(' ', 'default', d.defaclrole::regrole, d.defaclnamespace::regnamespace, d.defaclobjtype,
            (SELECT string_agg(a::text, ' ' ORDER BY a::text) FROM unnest(d.defaclacl) a))
           FROM pg_default_acl d",
        "SELECT concat_ws(' ', 'function', p.oid::regprocedure,
            (SELECT string_agg(a::text, ' ' ORDER BY a::text) FROM unnest(p.proacl) a))
           FROM pg_proc p WHERE p.proacl IS NOT NULL OR p.pronamespace NOT IN
            ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)",
        "SELECT concat_ws(' ', 'subscription', subname) FROM pg_subscription s
           JOIN pg_database d ON d.oid = s.subdbid AND d.datname = current_database()",
        "SELECT concat_ws(' ', 'extension', extname, extversion, extnamespace::regnamespace, extowner::regrole)
           FROM pg_extension",
        "SELECT concat_ws(' ', 'column', a.attrelid::regclass, a.attname, a.atttypid::regtype, a.attnotnull)
           FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
           JOIN pg_namespace n ON n.oid = c.relnamespace
          WHERE a.attnum > 0 AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')",
    ];
    const OWN: [&str; 4] = [
        "SELECT 'health check ' || id FROM public.health_check",
        "SELECT 'migration ' || key || ' ' || id FROM neon_migration.migration_id",
        "SELECT 'prepared ' || d.datname FROM neon_migration.prepared_database p
           JOIN pg_database d ON d.oid = p.database",
        "SELECT 'subscriptions dropped ' || id || ' ' || timeline_id FROM neon.drop_subscriptions_done",
    ];
    let own = client(socket, port, "postgres").await;
    let mut lines = BTreeSet::new();
    for sql in SHARED.iter().chain(&OWN) {
        lines.extend(column(&own, sql).await);
    }
    for database in column(&own, "SELECT datname::text FROM pg_database WHERE datallowconn").await {
        let inside = client(socket, port, &database).await;
        for sql in INSIDE {
            let found = column(&inside, sql).await;
            lines.extend(found.into_iter().map(|line| format!("{database}: {line}")));
        }
    }
    lines
}

/// The rows of a query with one column of text.
pub(crate) async fn column(client: &Client, sql: &str) -> Vec<String> {
    let rows = client.query(sql, &[]).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    rows.iter().map(|row| row.get(0)).collect()
}

/// A session of the superuser's.
pub(crate) async fn client(socket: &Path, port: u16, database: &str) -> Client {
    let mut config = tokio_postgres::Config::new();
    config.host_path(socket).port(port).user(ADMIN).dbname(database);
    let (client, connection) = config.connect(NoTls).await.unwrap();
    // It ends with its client.
    tokio::spawn(connection);
    client
}
