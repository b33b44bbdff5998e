//! What specs and users once did to the catalog, or could, each as a case of its own on a real PostgreSQL.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod support;

use compute_ctl::catalog::{
    self, Applied, ApplyError, Connection, ConnectionSettings, Options, PlanError, Profile,
};
use compute_ctl::spec::document::ComputeSpec;
use serde_json::{Value, json};
use support::pg::{ADMIN, Server};
use support::view::Observer;
use tokio_util::sync::CancellationToken;

const KEYS: &str =
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBA=";

fn options() -> Options {
    Options { privileged_role: "neon_superuser".to_owned(), profile: Profile::Standard, concurrency: 2 }
}

fn spec(roles: Value, databases: Value, deltas: Value) -> ComputeSpec {
    with(roles, databases, deltas, json!({}))
}

/// A spec with further fields.
fn with(roles: Value, databases: Value, deltas: Value, fields: Value) -> ComputeSpec {
    let mut spec = json!({
        "format_version": 1.0,
        "suspend_timeout_seconds": -1,
        "cluster": { "roles": roles, "databases": databases },
        "delta_operations": deltas,
    });
    spec.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    serde_json::from_value(spec).unwrap()
}

fn role(name: &str) -> Value {
    json!({ "name": name })
}

fn member(name: &str, group: &str) -> Value {
    let option = json!({ "name": "IN ROLE", "value": format!("\"{group}\""), "vartype": "identifier" });
    json!({ "name": name, "options": [option] })
}

fn database(name: &str, owner: &str) -> Value {
    json!({ "name": name, "owner": owner })
}

fn delete(action: &str, name: &str) -> Value {
    json!({ "action": action, "name": name })
}

fn rename(action: &str, name: &str, to: &str) -> Value {
    json!({ "action": action, "name": name, "new_name": to })
}

struct Bench {
    server: Server,
    main: Connection,
    admin: Observer,
}

impl Bench {
    async fn new(conf: &str) -> Self {
        let server = Server::start(conf);
        let settings = ConnectionSettings::new(&server.connstr("postgres"), Profile::Standard).unwrap();
        let main = catalog::connect(&settings).await.unwrap();
        let admin = Observer::enter(&server, "postgres").await;
        Self { server, main, admin }
    }

    async fn inside(&self, database: &str) -> Observer {
        Observer::enter(&self.server, database).await
    }

    async fn apply(&self, spec: &ComputeSpec) -> Result<Applied, ApplyError> {
        catalog::apply(&self.main, spec, &options(), &CancellationToken::new()).await
    }

    /// Applies, and again: then there must be nothing to do.
    async fn settle(&self, spec: &ComputeSpec) {
        let first = self.apply(spec).await.unwrap();
        catalog::migrations::run(&self.main, &first.migrations, &CancellationToken::new()).await.unwrap();
        assert_eq!(self.apply(spec).await.unwrap(), Applied::default(), "a second apply has nothing to do");
    }

    /// Nothing may happen to the server.
    async fn refused(&self, spec: &ComputeSpec) -> PlanError {
        let before = self.admin.view(&self.server).await;
        let error = self.apply(spec).await.unwrap_err();
        assert_eq!(self.admin.view(&self.server).await, before, "{error}");
        match error {
            ApplyError::Plan(error) => error,
            late => panic!("found out too late: {late:?}"),
        }
    }
}

/// The first column.
async fn texts(observer: &Observer, sql: &str) -> Vec<String> {
    observer.rows(sql).await.iter().map(|row| row.get(0)).collect()
}

const PUBLIC_OWNER: &str =
    "SELECT pg_get_userbyid(nspowner)::text FROM pg_namespace WHERE nspname = 'public'";

#[tokio::test]
async fn circles_are_refused_and_nothing_is_executed() {
    let bench = Bench::new("").await;
    bench.settle(&spec(json!([role("a"), role("b")]), json!([database("d", "a")]), json!([]))).await;
    for (roles, deltas) in [
        (json!([]), json!([rename("rename_role", "a", "c"), rename("rename_role", "c", "a")])),
        (json!([]), json!([rename("rename_db", "d", "e"), rename("rename_db", "e", "d")])),
        (json!([member("a", "b"), member("b", "a")]), json!([])),
        (json!([member("new", "other"), member("other", "new")]), json!([])),
        (json!([member("a", "a")]), json!([])),
        (json!([member("new", "new")]), json!([])),
        (
            json!([member("new", "a"), member("a", "c")]),
            json!([rename("rename_role", "b", "new"), rename("rename_role", "x", "c")]),
        ),
    ] {
        // Something that could be done goes with it.
        let mut deltas = deltas.as_array().unwrap().clone();
        deltas.push(delete("delete_db", "d"));
        bench.refused(&spec(roles, json!([]), json!(deltas))).await;
    }
    // Through a membership of which the spec does not speak.
    bench.admin.run("GRANT a TO b").await;
    bench.refused(&spec(json!([member("a", "b"), role("new")]), json!([]), json!([]))).await;
}

#[tokio::test]
async fn a_group_that_goes_is_no_group_to_declare() {
    let bench = Bench::new("").await;
    bench.settle(&spec(json!([role("g"), member("m", "g")]), json!([]), json!([]))).await;
    let both = spec(json!([member("m", "g")]), json!([]), json!([delete("delete_role", "g")]));
    let error = bench.refused(&both).await;
    assert_eq!(error.to_string(), "cannot delete role \"g\", of which role \"m\" is to be a member");
    bench.settle(&spec(json!([role("m")]), json!([]), json!([delete("delete_role", "g")]))).await;
}

#[tokio::test]
async fn names_move_on_once_however_long_the_chain() {
    let bench = Bench::new("").await;
    let start = ["a", "b", "c", "x"].map(|name| database(name, ADMIN));
    bench.settle(&spec(json!([]), json!(start), json!([]))).await;
    for name in ["a", "b", "c", "x"] {
        bench.admin.run(&format!("COMMENT ON DATABASE {name} IS 'was {name}'")).await;
    }
    // None of them is listed any more.
    let chain = json!([
        delete("delete_db", "x"),
        rename("rename_db", "c", "x"),
        rename("rename_db", "b", "c"),
        rename("rename_db", "a", "b"),
    ]);
    bench.settle(&spec(json!([]), json!([]), chain)).await;
    let names = "SELECT datname || ' ' || shobj_description(oid, 'pg_database') FROM pg_database \
                 WHERE datname NOT LIKE 'template%' AND datname <> 'postgres' ORDER BY 1";
    assert_eq!(texts(&bench.admin, names).await, ["b was a", "c was b", "x was c"]);

    bench.settle(&spec(json!([role("r"), role("s"), role("t")]), json!([]), json!([]))).await;
    let oids =
        "SELECT string_agg(oid::text, ' ' ORDER BY rolname) FROM pg_roles WHERE rolname IN ('r', 's', 't')";
    let before = bench.admin.text(oids).await;
    let chain = json!([
        rename("rename_role", "t", "u"),
        rename("rename_role", "s", "t"),
        rename("rename_role", "r", "s"),
    ]);
    bench.settle(&spec(json!([]), json!([]), chain)).await;
    let oids =
        "SELECT string_agg(oid::text, ' ' ORDER BY rolname) FROM pg_roles WHERE rolname IN ('s', 't', 'u')";
    assert_eq!(bench.admin.text(oids).await, before);
}

#[tokio::test]
async fn roles_and_owners_follow_their_entries() {
    let bench = Bench::new("").await;
    let md5 = "0123456789ABCDEF0123456789abcdef";
    let entry = |limit: &str, extra: &str| {
        json!({ "name": "r", "encrypted_password": md5, "options": [
            { "name": "connection limit", "value": limit, "vartype": "integer" },
            { "name": extra, "value": null, "vartype": "bool" },
            { "name": "VALID UNTIL", "value": "infinity", "vartype": "string" } ] })
    };
    let listed = |owner: &str| json!([database("d", owner), database("e", owner)]);
    bench.settle(&spec(json!([entry("3", "NoCreateDB")]), listed("neon_superuser"), json!([]))).await;
    let of_role = "SELECT rolconnlimit || ' ' || rolcreatedb || ' ' || rolvaliduntil || ' ' || rolpassword \
                   FROM pg_authid WHERE rolname = 'r'";
    let stored = "md50123456789abcdef0123456789abcdef";
    assert_eq!(bench.admin.text(of_role).await, format!("3 false infinity {stored}"));
    // Its privileges become explicit ones.
    bench.admin.run("REVOKE TEMPORARY ON DATABASE d FROM PUBLIC").await;
    let version = "SELECT xmin::text FROM pg_authid WHERE rolname = 'r'";
    let before = bench.admin.text(version).await;
    bench.settle(&spec(json!([entry("3", "nocreatedb"), role("s")]), listed("s"), json!([]))).await;
    assert_eq!(bench.admin.text(version).await, before, "an MD5 digest is known again");
    // The privileged role was the owner, and what it had went to the new one.
    let granted = "SELECT count(*)::text FROM pg_database d, aclexplode(datacl) a \
                   WHERE datname IN ('d', 'e') AND a.grantee = 'neon_superuser'::regrole";
    assert_eq!(bench.admin.text(granted).await, "6");
    bench.settle(&spec(json!([entry("4", "createdb"), role("new")]), listed("new"), json!([]))).await;
    assert_eq!(bench.admin.text(of_role).await, format!("4 true infinity {stored}"));
    let owners = "SELECT DISTINCT pg_get_userbyid(datdba)::text FROM pg_database WHERE datname IN ('d', 'e')";
    assert_eq!(texts(&bench.admin, owners).await, ["new"]);
}

#[tokio::test]
async fn a_verifier_is_refused_or_stored_as_it_is() {
    let bench = Bench::new("").await;
    bench.settle(&spec(json!([]), json!([]), json!([]))).await;
    let short = KEYS.replace("AAA=", "AA==");
    let long = "AAAA".repeat(200);
    let salt = "c2FsdHNhbHRzYWx0c2FsdA==";
    for (verifier, good) in [
        (format!("SCRAM-SHA-256$4096:{salt}${KEYS}"), true),
        (format!("SCRAM-SHA-256$1:AAAA${KEYS}"), true),
        (format!("SCRAM-SHA-256$4096:{salt}${short}"), false),
        (format!("SCRAM-SHA-256$4096:{salt}${}", KEYS.replace("BBA=", "BB==")), false),
        (format!("SCRAM-SHA-256$4096:AAA=A==={salt}${KEYS}"), false),
        (format!("SCRAM-SHA-256$0:{salt}${KEYS}"), false),
        (format!("SCRAM-SHA-256$-1:{salt}${KEYS}"), false),
        (format!("SCRAM-SHA-256$ 1:{salt}${KEYS}"), false),
        (format!("SCRAM-SHA-256$99999999999:{salt}${KEYS}"), false),
        (format!("SCRAM-SHA-256$4096:{salt}${KEYS}:more"), false),
        (format!("SCRAM-SHA-256$4096:{salt}${KEYS}\n"), false),
        (format!("scram-sha-256$4096:{salt}${KEYS}"), false),
        (format!("SCRAM-SHA-256$4096:{long}${KEYS}"), false),
        ("0123456789abcdef0123456789abcdef".to_owned(), true),
        ("md50123456789ABCDEF0123456789ABCDEF".to_owned(), true),
        ("0123456789abcdef0123456789abcdeg".to_owned(), false),
    ] {
        let wanted = spec(json!([{ "name": "r", "encrypted_password": verifier }]), json!([]), json!([]));
        if !good {
            assert!(matches!(bench.refused(&wanted).await, PlanError::BadVerifier { .. }), "{verifier}");
            continue;
        }
        bench.settle(&wanted).await;
        let stored = bench.admin.text("SELECT rolpassword FROM pg_authid WHERE rolname = 'r'").await;
        let digest = verifier.trim_start_matches("md5").to_lowercase();
        assert!(stored == verifier || stored == format!("md5{digest}"), "{verifier} became {stored}");
    }
}

#[tokio::test]
async fn memberships_are_completed_and_never_taken_away() {
    let bench = Bench::new("").await;
    let roles = json!([member("early", "later"), role("later"), role("third"), member("with", "early")]);
    bench.settle(&spec(roles, json!([]), json!([]))).await;
    // The member may admit others: more than the spec says, and not to be taken away.
    bench.admin.run("GRANT later TO early WITH ADMIN OPTION; GRANT third TO \"with\"").await;
    let roles = json!([member("early", "later"), member("later", "third"), role("third"), role("with")]);
    bench.settle(&spec(roles, json!([]), json!([]))).await;
    let members = "SELECT g.rolname || ' has ' || m.rolname || CASE WHEN admin_option THEN ' as admin' ELSE '' END \
                   FROM pg_auth_members a JOIN pg_roles g ON g.oid = roleid JOIN pg_roles m ON m.oid = a.member \
                   WHERE g.rolname !~ '^(pg_|neon)' ORDER BY 1";
    assert_eq!(
        texts(&bench.admin, members).await,
        ["early has with", "later has early as admin", "third has later", "third has with"]
    );
}

#[tokio::test]
async fn a_role_goes_with_all_it_was_given_and_passed_on() {
    let bench = Bench::new("").await;
    let roles = ["owner", "helper", "gone", "heir", "club"].map(role);
    let listed = json!([database("app", "owner"), database("other", "owner")]);
    bench.settle(&spec(json!(roles), listed.clone(), json!([]))).await;
    let app = bench.inside("app").await;
    app.run(
        "GRANT club TO gone;
         CREATE SCHEMA s AUTHORIZATION owner; GRANT USAGE ON SCHEMA s TO PUBLIC;
         SET ROLE owner; CREATE TABLE s.t (id int4); CREATE FUNCTION s.f() RETURNS int4 LANGUAGE sql AS 'SELECT 1';
         GRANT SELECT ON s.t TO helper WITH GRANT OPTION; GRANT SELECT, UPDATE ON s.t TO club WITH GRANT OPTION;
         GRANT EXECUTE ON FUNCTION s.f() TO gone WITH GRANT OPTION;
         SET ROLE helper; GRANT SELECT ON s.t TO gone WITH GRANT OPTION;
         SET ROLE gone; GRANT SELECT ON s.t TO heir; GRANT UPDATE ON s.t TO heir;
         GRANT EXECUTE ON FUNCTION s.f() TO heir;
         RESET ROLE",
    )
    .await;
    bench
        .admin
        .run(
            "GRANT SET ON PARAMETER log_duration TO helper WITH GRANT OPTION;
             GRANT CONNECT ON DATABASE other TO helper WITH GRANT OPTION;
             SET ROLE helper;
             GRANT SET ON PARAMETER log_duration TO gone WITH GRANT OPTION;
             GRANT CONNECT ON DATABASE other TO gone WITH GRANT OPTION;
             SET ROLE gone;
             GRANT SET ON PARAMETER log_duration TO heir;
             GRANT CONNECT ON DATABASE other TO heir;
             RESET ROLE",
        )
        .await;
    bench.settle(&spec(json!([]), listed, json!([delete("delete_role", "gone")]))).await;
    let grants = "SELECT grantee::regrole || ' ' || privilege_type || ' by ' || grantor::regrole \
                  FROM pg_class, aclexplode(relacl) WHERE relname = 't' AND relnamespace = 's'::regnamespace \
                  AND grantee <> relowner ORDER BY 1";
    assert_eq!(
        texts(&app, grants).await,
        ["club SELECT by owner", "club UPDATE by owner", "heir UPDATE by club", "helper SELECT by owner"]
    );
    let grants = "SELECT grantee::regrole || ' ' || privilege_type FROM pg_parameter_acl, aclexplode(paracl) \
                  WHERE parname = 'log_duration' AND grantee <> grantor";
    assert_eq!(texts(&bench.admin, grants).await, ["helper SET"]);
}

#[tokio::test]
async fn statistics_come_with_their_library_and_hold_no_verifiers() {
    let bench = Bench::new("shared_preload_libraries = 'pg_stat_statements'").await;
    let preloaded = json!({ "cluster": {
        "roles": [{ "name": "r", "encrypted_password": format!("SCRAM-SHA-256$4096:AAAA${KEYS}") }],
        "databases": [],
        "settings": [{
            "name": "shared_preload_libraries", "value": "pg_stat_statements", "vartype": "string" }],
    } });
    // A library of a similar name is another.
    bench.settle(&spec(json!([]), json!([]), json!([]))).await;
    let installed = "SELECT extname || ' in ' || extnamespace::regnamespace FROM pg_extension \
                     WHERE extname = 'pg_stat_statements'";
    assert!(texts(&bench.admin, installed).await.is_empty());
    bench.admin.run("CREATE EXTENSION pg_stat_statements SCHEMA public").await;
    bench.admin.run("DROP EXTENSION pg_stat_statements").await;
    bench.settle(&with(json!([]), json!([]), json!([]), preloaded)).await;
    assert_eq!(texts(&bench.admin, installed).await, ["pg_stat_statements in public"]);
    // Whoever monitors may read all that is in there.
    let verifiers = "SELECT query FROM public.pg_stat_statements WHERE query LIKE '%SCRAM-SHA-256$%AAAA%' \
                     AND query NOT LIKE '%pg_stat_statements%'";
    assert_eq!(texts(&bench.admin, verifiers).await, [""; 0]);
}

#[tokio::test]
async fn schema_public_goes_to_the_owner_whenever_there_is_one() {
    let bench = Bench::new("").await;
    bench.admin.run("CREATE DATABASE d").await;
    let inside = bench.inside("d").await;
    inside.run(&format!("ALTER SCHEMA public OWNER TO {ADMIN}")).await;
    let roles = || json!([role("r"), role("s")]);
    bench.settle(&spec(roles(), json!([database("d", ADMIN)]), json!([]))).await;
    assert_eq!(inside.text(PUBLIC_OWNER).await, ADMIN);
    let defaults = "SELECT string_agg(defaclobjtype::text, '' ORDER BY defaclobjtype) FROM pg_default_acl \
                    WHERE defaclrole = 'cloud_admin'::regrole AND defaclnamespace = 'public'::regnamespace";
    assert_eq!(inside.text(defaults).await, "Sr");
    // Nothing of the database's inside changes with its owner but this.
    bench.settle(&spec(roles(), json!([database("d", "r")]), json!([]))).await;
    assert_eq!(inside.text(PUBLIC_OWNER).await, "r");
    // The schema is handed over with all else.
    let gone = json!([delete("delete_role", "r")]);
    bench.settle(&spec(json!([role("s")]), json!([database("d", "s")]), gone)).await;
    assert_eq!(inside.text(PUBLIC_OWNER).await, "s");

    let undo = "ALTER DEFAULT PRIVILEGES FOR ROLE cloud_admin IN SCHEMA public REVOKE ALL ON TABLES FROM neon_superuser";
    inside.run(undo).await;
    assert_eq!(inside.text(defaults).await, "S");
    let listed = spec(json!([role("s")]), json!([database("d", "s")]), json!([]));
    bench.settle(&listed).await;
    assert_eq!(inside.text(defaults).await, "Sr");

    inside.run("DROP SCHEMA public").await;
    bench.settle(&listed).await;
    assert!(texts(&inside, PUBLIC_OWNER).await.is_empty());
}

#[tokio::test]
async fn web_access_comes_and_goes() {
    let bench = Bench::new("").await;
    let grants = "SELECT count(*)::text FROM pg_namespace, aclexplode(nspacl) \
                  WHERE nspname = 'public' AND pg_get_userbyid(grantee) = 'web_access' AND privilege_type = 'CREATE'";
    let d = json!([database("d", ADMIN)]);
    bench.settle(&spec(json!([]), d.clone(), json!([]))).await;
    let inside = bench.inside("d").await;
    assert_eq!(inside.text(grants).await, "0");
    bench.settle(&spec(json!([role("web_access")]), d.clone(), json!([]))).await;
    assert_eq!(inside.text(grants).await, "1");
    // Another role of that name.
    let renamed = json!([rename("rename_role", "web_access", "was")]);
    bench.settle(&spec(json!([role("web_access"), role("was")]), d, renamed)).await;
    assert_eq!(inside.text(grants).await, "1");
    // Databases that are new just then have nothing for it.
    let both = json!([database("d", ADMIN), database("e", ADMIN)]);
    bench.settle(&spec(json!([]), both, json!([delete("delete_role", "web_access")]))).await;
    assert_eq!(inside.text(grants).await, "0");
}

#[tokio::test]
async fn what_is_put_in_place_of_our_notes_is_not_run() {
    let bench = Bench::new("").await;
    let trap = "CREATE FUNCTION neon_migration.trap() RETURNS int8 LANGUAGE plpgsql \
                    AS 'BEGIN ALTER ROLE mallory SUPERUSER; RETURN 0; END';
                CREATE VIEW neon_migration.migration_id AS SELECT 0 AS key, neon_migration.trap() AS id;
                CREATE VIEW neon_migration.prepared_database AS
                    SELECT 1::oid AS database, neon_migration.trap()::text AS mark;
                RESET ROLE";
    let empty = spec(json!([]), json!([]), json!([]));
    bench.admin.run("CREATE ROLE mallory; GRANT CREATE ON DATABASE postgres TO mallory").await;
    for (create, what) in [
        ("SET ROLE mallory; CREATE SCHEMA neon_migration; ", "relation neon_migration."),
        (
            "CREATE SCHEMA neon_migration; GRANT ALL ON SCHEMA neon_migration TO mallory; SET ROLE mallory; ",
            "relation neon_migration.",
        ),
    ] {
        bench.admin.run(&format!("{create}{trap}")).await;
        let error = bench.refused(&empty).await;
        assert!(matches!(&error, PlanError::NotOurs { what: named } if named.starts_with(what)), "{error}");
        let rights = "SELECT rolsuper::text FROM pg_roles WHERE rolname = 'mallory'";
        assert_eq!(bench.admin.text(rights).await, "false");
        bench.admin.run("DROP SCHEMA neon_migration CASCADE").await;
    }
    bench.admin.run("SET ROLE mallory; CREATE SCHEMA neon_migration; RESET ROLE").await;
    let error = bench.refused(&empty).await;
    assert!(matches!(&error, PlanError::NotOurs { what } if what == "schema neon_migration"), "{error}");
    bench.admin.run("DROP SCHEMA neon_migration").await;
    bench.settle(&empty).await;
}

#[tokio::test]
async fn migrations_resume_where_one_failed() {
    let bench = Bench::new("").await;
    let (empty, token) = (spec(json!([]), json!([]), json!([])), CancellationToken::new());
    let first = bench.apply(&empty).await.unwrap();
    assert_eq!(first.migrations.len(), 12);
    bench
        .admin
        .run(
            "CREATE FUNCTION neon_migration.refuse() RETURNS trigger LANGUAGE plpgsql
                 AS 'BEGIN IF NEW.id = 4 THEN RAISE EXCEPTION ''not yet''; END IF; RETURN NEW; END';
             CREATE TRIGGER refuse BEFORE UPDATE ON neon_migration.migration_id FOR EACH ROW
                 EXECUTE FUNCTION neon_migration.refuse();
             ALTER TABLE neon_migration.migration_id ENABLE ALWAYS TRIGGER refuse",
        )
        .await;
    let error = catalog::migrations::run(&bench.main, &first.migrations, &token).await.unwrap_err();
    assert_eq!(error.id, 4);
    assert_eq!(error.to_string(), "migration 4 failed");
    let state = "SELECT id || ' ' || (SELECT count(*) FROM pg_auth_members \
                     WHERE roleid = 'pg_monitor'::regrole AND member = 'neon_superuser'::regrole) \
                 FROM neon_migration.migration_id";
    assert_eq!(bench.admin.text(state).await, "3 0", "what the migration did was taken back with its number");
    bench.admin.run("DROP TRIGGER refuse ON neon_migration.migration_id").await;
    let again = bench.apply(&empty).await.unwrap();
    assert_eq!((again.steps, again.migrations.len()), (0, 9));
    catalog::migrations::run(&bench.main, &again.migrations, &token).await.unwrap();
    assert_eq!(bench.admin.text(state).await, "12 1");
    assert_eq!(bench.apply(&empty).await.unwrap(), Applied::default());
}

#[tokio::test]
async fn inherited_subscriptions_go_once_for_each_timeline() {
    let bench = Bench::new("").await;
    let timeline = |timeline: &str| {
        let fields = json!({ "timeline_id": timeline, "drop_subscriptions_before_start": true });
        with(json!([]), json!([database("d", ADMIN)]), json!([]), fields)
    };
    bench.settle(&spec(json!([]), json!([database("d", ADMIN)]), json!([]))).await;
    let inside = bench.inside("d").await;
    let subscribe = "CREATE SUBSCRIPTION \"it's \"\"one\"\"\" CONNECTION 'dbname=nowhere' PUBLICATION p \
                     WITH (connect = false, slot_name = 'theirs')";
    let count = "SELECT count(*)::text FROM pg_subscription";
    let (one, two) = ("8a7b6c5d4e3f2a1b0c9d8e7f6a5b4c3d", "00000000000000000000000000000002");
    inside.run(subscribe).await;
    bench.settle(&timeline(one)).await;
    assert_eq!(inside.text(count).await, "0");
    inside.run(subscribe).await;
    bench.settle(&timeline(one)).await;
    assert_eq!(inside.text(count).await, "1", "one made on this timeline stays");
    bench.settle(&timeline(two)).await;
    assert_eq!(inside.text(count).await, "0");
}
