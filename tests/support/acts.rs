//! What other people do to a server between two applies: objects, grants, settings, traps.

use proptest::prelude::*;

use super::names::ident;
use super::pg::ADMIN;
use super::specs::{Draft, PRIVILEGED, pick};

/// What somebody does to the server. Numbers are taken modulo what the first spec lists.
#[derive(Clone, Debug)]
pub(super) enum Act {
    Own(u8, u8),
    PassOn(u8, u8, u8, u8),
    PassOnDatabase(u8, u8, u8),
    PassOnParameter(u8, u8),
    DefaultPrivileges(u8, u8, u8),
    Shadow(u8),
    SetDatabase(u8, u8),
    SetAdmin(u8),
    EventTrigger(u8),
    Template(u8),
    Close(u8),
    HalfDrop(u8),
    Subscription(u8),
    Session(u8),
    NeonSchema(u8),
    DropPublic(u8),
    TakePublic(u8, u8),
    UsePublic(u8, u8),
    UndoPreparation(u8),
    Weaken(u8),
    Tamper(u8, u8),
    Membership(u8, u8),
}

pub(super) fn act() -> impl Strategy<Value = Act> {
    let one = any::<u8>;
    let two = || (any::<u8>(), any::<u8>());
    let three = || (any::<u8>(), any::<u8>(), any::<u8>());
    prop_oneof![
        two().prop_map(|(a, b)| Act::Own(a, b)),
        (three(), one()).prop_map(|((a, b, c), d)| Act::PassOn(a, b, c, d)),
        three().prop_map(|(a, b, c)| Act::PassOnDatabase(a, b, c)),
        two().prop_map(|(a, b)| Act::PassOnParameter(a, b)),
        three().prop_map(|(a, b, c)| Act::DefaultPrivileges(a, b, c)),
        one().prop_map(Act::Shadow),
        two().prop_map(|(a, b)| Act::SetDatabase(a, b)),
        one().prop_map(Act::SetAdmin),
        one().prop_map(Act::EventTrigger),
        one().prop_map(Act::Template),
        one().prop_map(Act::Close),
        one().prop_map(Act::HalfDrop),
        one().prop_map(Act::Subscription),
        one().prop_map(Act::Session),
        one().prop_map(Act::NeonSchema),
        one().prop_map(Act::DropPublic),
        two().prop_map(|(a, b)| Act::TakePublic(a, b)),
        two().prop_map(|(a, b)| Act::UsePublic(a, b)),
        one().prop_map(Act::UndoPreparation),
        one().prop_map(Act::Weaken),
        two().prop_map(|(a, b)| Act::Tamper(a, b)),
        two().prop_map(|(a, b)| Act::Membership(a, b)),
    ]
}

/// Settings of users that change what statements mean, or keep sessions from working at all.
const SETTINGS: [(&str, &str); 27] = [
    ("search_path", "public, pg_catalog"),
    ("default_transaction_read_only", "on"),
    ("statement_timeout", "1"),
    ("lock_timeout", "1"),
    ("idle_session_timeout", "1"),
    ("idle_in_transaction_session_timeout", "1"),
    ("session_replication_role", "origin"),
    ("local_preload_libraries", "nowhere"),
    ("DateStyle", "German"),
    ("TimeZone", "'Asia/Kolkata'"),
    ("standard_conforming_strings", "off"),
    ("default_transaction_isolation", "serializable"),
    ("default_transaction_deferrable", "on"),
    ("transform_null_equals", "on"),
    ("quote_all_identifiers", "on"),
    ("array_nulls", "off"),
    ("backslash_quote", "off"),
    ("bytea_output", "escape"),
    ("client_min_messages", "debug1"),
    ("xmloption", "document"),
    ("debug_print_parse", "on"),
    ("debug_print_plan", "on"),
    ("exit_on_error", "on"),
    ("row_security", "off"),
    ("plan_cache_mode", "force_generic_plan"),
    ("check_function_bodies", "on"),
    ("role", "pg_monitor"),
];

/// Objects under names of built-in ones, each of which ends whoever is led to it.
const SHADOWS: &str = "
    CREATE FUNCTION public.trap(text) RETURNS text LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''shadowed''; END';
    CREATE FUNCTION public.format(text, VARIADIC text[]) RETURNS text LANGUAGE sql AS 'SELECT public.trap($1)';
    CREATE FUNCTION public.format(text, text) RETURNS text LANGUAGE sql AS 'SELECT public.trap($1)';
    CREATE FUNCTION public.set_config(text, text, bool) RETURNS text LANGUAGE sql AS 'SELECT public.trap($1)';
    CREATE FUNCTION public.current_setting(text) RETURNS text LANGUAGE sql AS 'SELECT public.trap($1)';
    CREATE FUNCTION public.current_database() RETURNS text LANGUAGE sql AS 'SELECT public.trap('''')';
    CREATE FUNCTION public.string_agg(text) RETURNS text LANGUAGE sql AS 'SELECT public.trap($1)';
    CREATE FUNCTION public.trapped(text, text) RETURNS bool LANGUAGE sql AS 'SELECT public.trap($1) IS NULL';
    CREATE FUNCTION public.trapped(name, text) RETURNS bool LANGUAGE sql AS 'SELECT public.trap($1::text) IS NULL';
    CREATE FUNCTION public.trapped(oid, int4) RETURNS bool LANGUAGE sql AS 'SELECT public.trap('''') IS NULL';
    CREATE OPERATOR public.= (LEFTARG = text, RIGHTARG = text, FUNCTION = public.trapped);
    CREATE OPERATOR public.= (LEFTARG = name, RIGHTARG = text, FUNCTION = public.trapped);
    CREATE OPERATOR public.= (LEFTARG = oid, RIGHTARG = int4, FUNCTION = public.trapped);
    CREATE OPERATOR public.<> (LEFTARG = text, RIGHTARG = text, FUNCTION = public.trapped);
    CREATE DOMAIN public.text AS pg_catalog.int4;
    CREATE DOMAIN public.int4 AS pg_catalog.text;
    CREATE VIEW public.pg_authid AS SELECT public.trap('') AS rolname;
    CREATE VIEW public.pg_database AS SELECT public.trap('') AS datname;
    CREATE VIEW public.pg_namespace AS SELECT public.trap('') AS nspname";

/// Takes back what acts leave in the administrator's database.
pub(crate) const CLEAN: &str = "
    DROP EVENT TRIGGER IF EXISTS refuse;
    DROP SCHEMA IF EXISTS neon, acts CASCADE;
    DO 'BEGIN EXECUTE COALESCE((SELECT pg_catalog.string_agg(''DROP OPERATOR IF EXISTS ''
        || o.oid::pg_catalog.regoperator::pg_catalog.text, '';'') FROM pg_catalog.pg_operator o
        WHERE o.oprnamespace = ''public''::pg_catalog.regnamespace), ''''); END';
    DROP VIEW IF EXISTS public.pg_authid, public.pg_database, public.pg_namespace;
    DO 'BEGIN EXECUTE COALESCE((SELECT pg_catalog.string_agg(''DROP FUNCTION IF EXISTS ''
        || p.oid::pg_catalog.regprocedure::pg_catalog.text || '' CASCADE'', '';'') FROM pg_catalog.pg_proc p
        WHERE p.pronamespace = ''public''::pg_catalog.regnamespace), ''''); END';
    DROP DOMAIN IF EXISTS public.text, public.int4";

/// The acts on what a draft leaves behind: statements with the database they are for, and open sessions.
pub(super) fn script(draft: &Draft, acts: &[Act]) -> (Vec<(String, String)>, Vec<String>) {
    let open: Vec<&str> = draft
        .databases
        .iter()
        .filter(|database| database.traits.allow != Some(false))
        .map(|database| database.name.as_str())
        .collect();
    let mut script = Script { draft, open, statements: Vec::new(), sessions: Vec::new() };
    for (number, act) in acts.iter().enumerate() {
        // What does not apply to this draft is not done.
        let _ = script.act(number, act);
    }
    // What closes a database comes last. Superusers are made first: PostgreSQL lets nobody revoke what one of them
    // has granted as an ordinary role.
    script.statements.sort_by_key(|(_, sql)| {
        let closes = sql.contains("datconnlimit") || sql.contains("ALLOW_CONNECTIONS");
        if sql.ends_with(" SUPERUSER") { 0 } else { 1 + u8::from(closes) }
    });
    (script.statements, script.sessions)
}

struct Script<'a> {
    draft: &'a Draft,
    open: Vec<&'a str>,
    statements: Vec<(String, String)>,
    sessions: Vec<String>,
}

impl Script<'_> {
    fn role(&self, number: u8) -> Option<String> {
        pick(&self.draft.roles, number).map(|at| ident(&self.draft.roles[at].name))
    }

    fn database(&self, number: u8) -> Option<String> {
        pick(&self.open, number).map(|at| self.open[at].to_owned())
    }

    fn run(&mut self, database: &str, sql: String) {
        self.statements.push((database.to_owned(), sql));
    }

    fn once(&mut self, database: &str, mark: &str, sql: &str) {
        if !self.statements.iter().any(|(name, done)| name == database && done.contains(mark)) {
            self.run(database, sql.to_owned());
        }
    }

    fn act(&mut self, number: usize, act: &Act) -> Option<()> {
        match act {
            Act::Own(db, role) => {
                let (db, role) = (self.database(*db)?, self.role(*role)?);
                self.run(
                    &db,
                    format!(
                        "CREATE SCHEMA \"own {number}\" AUTHORIZATION {role}; SET ROLE {role}; \
                         CREATE TABLE \"own {number}\".\"t's\" (id int); \
                         CREATE SEQUENCE \"own {number}\".s; \
                         CREATE VIEW \"own {number}\".v AS SELECT 1 AS one; \
                         CREATE FUNCTION \"own {number}\".f(int) RETURNS int LANGUAGE sql AS 'SELECT $1'; \
                         RESET ROLE"
                    ),
                );
            }
            Act::PassOn(db, owner, between, last) => {
                let db = self.database(*db)?;
                let (owner, between, last) = (self.role(*owner)?, self.role(*between)?, self.role(*last)?);
                if owner == between || between == last || owner == last {
                    return None;
                }
                self.run(
                    &db,
                    format!(
                        "CREATE SCHEMA \"passed {number}\" AUTHORIZATION {owner}; SET ROLE {owner}; \
                         GRANT USAGE ON SCHEMA \"passed {number}\" TO PUBLIC; \
                         CREATE TABLE \"passed {number}\".t (id int, secret text); \
                         CREATE FUNCTION \"passed {number}\".f() RETURNS int LANGUAGE sql AS 'SELECT 1'; \
                         GRANT CREATE ON SCHEMA \"passed {number}\" TO {between} WITH GRANT OPTION; \
                         GRANT SELECT, UPDATE ON \"passed {number}\".t TO {between} WITH GRANT OPTION; \
                         GRANT EXECUTE ON FUNCTION \"passed {number}\".f() TO {between} WITH GRANT OPTION; \
                         SET ROLE {between}; \
                         GRANT CREATE ON SCHEMA \"passed {number}\" TO {last}; \
                         GRANT SELECT ON \"passed {number}\".t TO {last} WITH GRANT OPTION; \
                         GRANT UPDATE ON \"passed {number}\".t TO {last}; \
                         GRANT EXECUTE ON FUNCTION \"passed {number}\".f() TO {last}; RESET ROLE"
                    ),
                );
            }
            Act::PassOnDatabase(db, between, last) => {
                let (db, between, last) = (self.database(*db)?, self.role(*between)?, self.role(*last)?);
                let owner = &self.draft.databases.iter().find(|database| database.name == db)?.owner;
                if between == last || ident(owner) == between || ident(owner) == last {
                    return None;
                }
                let name = ident(&db);
                self.run(
                    "postgres",
                    format!(
                        "GRANT TEMPORARY ON DATABASE {name} TO {between} WITH GRANT OPTION; SET ROLE {between}; \
                         GRANT TEMPORARY ON DATABASE {name} TO {last}; RESET ROLE"
                    ),
                );
            }
            Act::PassOnParameter(between, last) => {
                let (between, last) = (self.role(*between)?, self.role(*last)?);
                if between == last {
                    return None;
                }
                self.run(
                    "postgres",
                    format!(
                        "GRANT SET ON PARAMETER log_duration TO {between} WITH GRANT OPTION; \
                         SET ROLE {between}; GRANT SET ON PARAMETER log_duration TO {last}; RESET ROLE"
                    ),
                );
            }
            Act::DefaultPrivileges(db, role, receiver) => {
                let (db, role, receiver) = (self.database(*db)?, self.role(*role)?, self.role(*receiver)?);
                self.run(
                    &db,
                    format!(
                        "ALTER DEFAULT PRIVILEGES FOR ROLE {role} GRANT SELECT ON TABLES TO {receiver}; \
                         ALTER DEFAULT PRIVILEGES FOR ROLE {role} GRANT USAGE ON SEQUENCES TO {PRIVILEGED}"
                    ),
                );
            }
            Act::Shadow(db) => {
                // Also in the administrator's own database.
                let db = if *db < 100 { "postgres".to_owned() } else { self.database(*db)? };
                if !self.dropped_public(&db) {
                    self.once(&db, "public.trap", SHADOWS);
                }
            }
            Act::SetDatabase(db, setting) => {
                let db = if *db < 100 { "postgres".to_owned() } else { self.database(*db)? };
                let (setting, value) = SETTINGS[pick(&SETTINGS, *setting)?];
                self.run("postgres", format!("ALTER DATABASE {} SET {setting} = {value}", ident(&db)));
            }
            Act::SetAdmin(setting) => {
                let (setting, value) = SETTINGS[pick(&SETTINGS, *setting)?];
                self.run("postgres", format!("ALTER ROLE {ADMIN} SET {setting} = {value}"));
            }
            Act::EventTrigger(db) => {
                let db = if *db < 100 { "postgres".to_owned() } else { self.database(*db)? };
                self.once(
                    &db,
                    "EVENT TRIGGER",
                    "CREATE SCHEMA acts; CREATE FUNCTION acts.refuse() RETURNS event_trigger LANGUAGE plpgsql \
                     AS 'BEGIN RAISE EXCEPTION ''refused''; END'; \
                     CREATE EVENT TRIGGER refuse ON ddl_command_start EXECUTE FUNCTION acts.refuse()",
                );
            }
            Act::Template(db) => {
                let db = self.database(*db)?;
                self.run("postgres", format!("ALTER DATABASE {} IS_TEMPLATE true", ident(&db)));
            }
            Act::Close(db) => {
                let db = self.database(*db)?;
                self.shut(&db, format!("ALTER DATABASE {} ALLOW_CONNECTIONS false", ident(&db)));
            }
            Act::HalfDrop(db) => {
                let db = self.database(*db)?;
                let text = db.replace('\'', "''");
                let sql = format!(
                    "UPDATE pg_catalog.pg_database SET datconnlimit = -2, datistemplate = false WHERE datname = '{text}'"
                );
                self.shut(&db, sql);
            }
            Act::Subscription(db) => {
                let db = self.database(*db).filter(|db| !self.is_shut(db))?;
                self.run(
                    &db,
                    format!(
                        "CREATE SUBSCRIPTION \"sub \"\"{number}\" CONNECTION 'dbname=nowhere' PUBLICATION p \
                         WITH (connect = false, slot_name = 'theirs_{number}')"
                    ),
                );
            }
            Act::Session(db) => {
                let db = self.database(*db)?;
                self.sessions.push(db);
            }
            Act::NeonSchema(role) => {
                let role = self.role(*role)?;
                self.once(
                    "postgres",
                    "SCHEMA neon",
                    &format!("CREATE SCHEMA neon AUTHORIZATION {role}; CREATE TABLE neon.unrelated (id int)"),
                );
            }
            Act::DropPublic(db) => {
                let db = self.database(*db)?;
                if !self.statements.iter().any(|(name, sql)| *name == db && sql.contains("public")) {
                    self.run(&db, "DROP SCHEMA public CASCADE".to_owned());
                }
            }
            Act::TakePublic(db, role) => {
                let (db, role) = (self.database(*db)?, self.role(*role)?);
                if !self.dropped_public(&db) {
                    self.run(&db, format!("ALTER SCHEMA public OWNER TO {role}"));
                }
            }
            Act::UsePublic(db, role) => {
                let (db, role) = (self.database(*db)?, self.role(*role)?);
                if !self.dropped_public(&db) {
                    self.run(&db, format!("GRANT CREATE ON SCHEMA public TO {role}"));
                }
            }
            Act::UndoPreparation(db) => {
                let db = self.database(*db)?;
                if !self.dropped_public(&db) {
                    self.run(
                        &db,
                        format!(
                            "ALTER DEFAULT PRIVILEGES FOR ROLE {ADMIN} IN SCHEMA public \
                             REVOKE ALL ON TABLES FROM {PRIVILEGED}"
                        ),
                    );
                }
            }
            Act::Weaken(how) => {
                let sql = [
                    format!("ALTER ROLE {PRIVILEGED} NOBYPASSRLS"),
                    format!("ALTER ROLE {PRIVILEGED} NOCREATEDB NOREPLICATION LOGIN"),
                    format!("REVOKE pg_write_all_data FROM {PRIVILEGED}"),
                ];
                self.run("postgres", sql[usize::from(*how) % 3].clone());
            }
            Act::Tamper(role, how) => {
                let role = self.role(*role)?;
                let how = [
                    "NOLOGIN",
                    "PASSWORD NULL",
                    "CONNECTION LIMIT 3",
                    "SUPERUSER",
                    "NOINHERIT",
                    "VALID UNTIL '2040-01-01 00:00:00+00'",
                    "NOLOGIN PASSWORD 'md5ffffffffffffffffffffffffffffffff'",
                ][usize::from(*how) % 7];
                self.run("postgres", format!("ALTER ROLE {role} {how}"));
            }
            Act::Membership(a, b) => {
                let roles = &self.draft.roles;
                let (a, b) = (&roles[pick(roles, *a)?], &roles[pick(roles, *b)?]);
                let (group, member) = if a.rank < b.rank { (a, b) } else { (b, a) };
                if group.rank != member.rank {
                    let (group, member) = (ident(&group.name), ident(&member.name));
                    self.run("postgres", format!("GRANT {group} TO {member} WITH ADMIN OPTION"));
                }
            }
        }
        Some(())
    }

    fn dropped_public(&self, db: &str) -> bool {
        self.statements.iter().any(|(name, sql)| name == db && sql.starts_with("DROP SCHEMA public"))
    }

    /// Whether it is to be closed in the end.
    fn is_shut(&self, db: &str) -> bool {
        let text = format!("'{}'", db.replace('\'', "''"));
        self.statements.iter().any(|(_, done)| {
            (done.contains("datconnlimit") && done.contains(&text))
                || (done.contains("ALLOW_CONNECTIONS") && done.contains(&ident(db)))
        })
    }

    /// Once, and not with subscriptions inside: those keep a database, and nobody can enter to drop them.
    fn shut(&mut self, db: &str, sql: String) {
        let subscribes = self.statements.iter().any(|(name, sql)| name == db && sql.contains("SUBSCRIPTION"));
        if !subscribes && !self.is_shut(db) && !self.sessions.iter().any(|name| name == db) {
            self.run("postgres", sql);
        }
    }
}
