mod deltas;

use serde_json::{Value, json};

use super::*;
use crate::catalog::attributes::{Flag, RoleAttributes};
use crate::catalog::read::{ExistingExtension, OwnObjects};
use crate::spec::document::ComputeAudit;

const SCRAM: &str = "SCRAM-SHA-256$4096:c2FsdHNhbHRzYWx0c2FsdA==$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:\
                     BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBA=";
const MD5: &str = "0123456789abcdef0123456789abcdef";

fn spec(roles: Value, databases: Value, deltas: Value) -> ComputeSpec {
    serde_json::from_value(json!({
        "format_version": 1.0,
        "suspend_timeout_seconds": -1,
        "cluster": { "roles": roles, "databases": databases },
        "delta_operations": deltas,
    }))
    .unwrap()
}

fn options() -> Options {
    Options { privileged_role: "neon_superuser".to_owned(), profile: Profile::Standard, concurrency: 1 }
}

/// A server with these roles (besides the administrator and the privileged role) and databases.
fn server(roles: &[(&str, Option<&str>)], databases: &[(&str, &str)]) -> Existing {
    let mut existing = Existing {
        server_version: 150_004,
        current_database: "postgres".to_owned(),
        current_user: "cloud_admin".to_owned(),
        own: OwnObjects {
            schemas: [("public".to_owned(), true), ("neon_migration".to_owned(), true)].into(),
            health_check: true,
            bookkeeping: true,
            migration: 12,
            ..OwnObjects::default()
        },
        ..Existing::default()
    };
    for group in ["pg_read_all_data", "pg_write_all_data"] {
        existing.roles.insert(group.to_owned(), ExistingRole::default());
        existing.members.insert(group.to_owned(), ["neon_superuser".to_owned()].into());
    }
    for (name, verifier) in roles.iter().chain(&[("cloud_admin", None), ("neon_superuser", None)]) {
        let role = ExistingRole { verifier: verifier.map(Secret::new), attributes: privileges() };
        existing.roles.insert((*name).to_owned(), role);
    }
    for (name, owner) in databases.iter().chain(&[("postgres", "cloud_admin")]) {
        let database = ExistingDatabase {
            owner: (*owner).to_owned(),
            granted_to: ["neon_superuser".to_owned()].into(),
            prepared: true,
            ..ExistingDatabase::default()
        };
        existing.databases.insert((*name).to_owned(), database);
    }
    existing
}

/// What the roles of these tests may do: everything but to be a superuser.
fn privileges() -> RoleAttributes {
    let mut attributes = RoleAttributes::default();
    for flag in Flag::ALL {
        attributes.set(flag, flag != Flag::Superuser);
    }
    attributes.connection_limit = Some(-1);
    attributes
}

fn planned(existing: &Existing, spec: &ComputeSpec) -> Vec<String> {
    plan(existing, spec, &options()).unwrap().steps().iter().map(Step::to_string).collect()
}

fn refused(existing: &Existing, spec: &ComputeSpec) -> String {
    plan(existing, spec, &options()).unwrap_err().to_string()
}

fn op(action: &str, name: &str) -> Value {
    json!({ "action": action, "name": name })
}

fn rename(action: &str, name: &str, to: &str) -> Value {
    json!({ "action": action, "name": name, "new_name": to })
}

#[test]
fn from_nothing_to_a_whole_spec() {
    let mut existing = server(&[], &[]);
    existing.roles.remove("neon_superuser");
    let mut spec = spec(
        json!([
            { "name": "alice", "encrypted_password": SCRAM },
            { "name": "jwt", "options": [{ "name": "CONNECTION LIMIT", "value": "50", "vartype": "integer" }] },
            { "name": "legacy", "encrypted_password": MD5 },
        ]),
        json!([{ "name": "odd \"name\"", "owner": "alice", "options": [
            { "name": "LC_COLLATE", "value": "C", "vartype": "string" },
            { "name": "TEMPLATE", "value": "template0", "vartype": "enum" },
        ] }]),
        Value::Null,
    );
    spec.local_proxy_config = serde_json::from_value(json!({ "jwks": [
        { "id": "1", "role_names": ["jwt"], "jwks_url": "u", "provider_name": "p" } ] }))
    .unwrap();
    let plan = plan(&existing, &spec, &options()).unwrap();
    let sql: Vec<String> = plan.steps().iter().flat_map(|step| step.sql().unwrap()).collect();
    assert_eq!(
        sql[..6],
        [
            "CREATE ROLE \"neon_superuser\" CREATEDB CREATEROLE NOLOGIN REPLICATION BYPASSRLS \
             IN ROLE pg_read_all_data, pg_write_all_data"
                .to_owned(),
            format!(
                "CREATE ROLE \"alice\" INHERIT CREATEROLE CREATEDB BYPASSRLS REPLICATION IN ROLE \
                 \"neon_superuser\" LOGIN PASSWORD '{SCRAM}'"
            ),
            "CREATE ROLE \"jwt\" CONNECTION LIMIT 50 LOGIN PASSWORD NULL".to_owned(),
            format!(
                "CREATE ROLE \"legacy\" INHERIT CREATEROLE CREATEDB BYPASSRLS REPLICATION IN ROLE \
                 \"neon_superuser\" LOGIN PASSWORD 'md5{MD5}'"
            ),
            "CREATE DATABASE \"odd \"\"name\"\"\" LC_COLLATE 'C' TEMPLATE template0 OWNER \"alice\""
                .to_owned(),
            "GRANT ALL PRIVILEGES ON DATABASE \"odd \"\"name\"\"\" TO \"neon_superuser\"".to_owned(),
        ]
    );
    let inside: Vec<String> = plan.steps()[6..].iter().map(Step::to_string).collect();
    assert_eq!(
        inside,
        [
            "prepare schema public and default privileges of database \"odd \\\"name\\\"\"",
            "note 1 prepared database(s)",
        ]
    );
    let shown = format!("{plan:?} {:?}", plan.steps().iter().map(Step::masked_sql).collect::<Vec<_>>());
    assert!(!shown.contains(SCRAM) && !shown.contains(MD5), "{shown}");
}

#[test]
fn what_is_true_already_plans_nothing() {
    let existing =
        server(&[("a", Some(SCRAM)), ("m", Some(&format!("md5{MD5}"))), ("n", None)], &[("d", "a")]);
    let spec = spec(
        json!([
            { "name": "a", "encrypted_password": SCRAM },
            { "name": "m", "encrypted_password": MD5.to_uppercase() },
            { "name": "m", "encrypted_password": MD5.to_uppercase() },
            { "name": "n" },
        ]),
        json!([{ "name": "d", "owner": "a" }]),
        json!([
            op("delete_db", "gone"),
            op("delete_role", "gone"),
            rename("rename_db", "gone", "d"),
            rename("rename_role", "gone", "a"),
            op("unheard_of", "a"),
        ]),
    );
    assert_eq!(planned(&existing, &spec), [""; 0]);
}

#[test]
fn differences_are_altered() {
    let mut existing = server(&[("a", Some(SCRAM)), ("b", None)], &[("d", "a"), ("e", "b")]);
    existing.databases.get_mut("e").unwrap().granted_to.clear();
    let spec = spec(
        json!([{ "name": "a", "encrypted_password": null }, { "name": "b", "encrypted_password": MD5 }]),
        json!([{ "name": "d", "owner": "b" }, { "name": "e", "owner": "b" }]),
        Value::Null,
    );
    assert_eq!(
        planned(&existing, &spec),
        [
            "remove password of role \"a\"",
            "set password of role \"b\"",
            "give database \"d\" to role \"b\"",
            "grant all privileges on database \"e\" to role \"neon_superuser\"",
            "prepare schema public and default privileges of database \"d\"",
            "note 1 prepared database(s)",
        ]
    );
}

#[test]
fn a_renamed_role_gets_its_md5_password_again_and_keeps_its_databases() {
    let existing =
        server(&[("al", Some(&format!("md5{MD5}"))), ("bo", Some(SCRAM))], &[("d", "al"), ("e", "bo")]);
    let spec = spec(
        json!([
            { "name": "alice", "encrypted_password": MD5 },
            { "name": "bob", "encrypted_password": SCRAM },
        ]),
        json!([{ "name": "d", "owner": "alice" }, { "name": "e", "owner": "bob" }]),
        json!([rename("rename_role", "al", "alice"), rename("rename_role", "bo", "bob")]),
    );
    assert_eq!(
        planned(&existing, &spec),
        [
            "rename role \"al\" to \"alice\"",
            "rename role \"bo\" to \"bob\"",
            "set password of role \"alice\"",
        ]
    );
}

#[test]
fn a_name_given_to_another_role_does_not_inherit_databases() {
    let existing = server(&[("al", None)], &[("d", "al")]);
    let spec = spec(
        json!([{ "name": "al" }, { "name": "alice" }]),
        json!([{ "name": "d", "owner": "al" }]),
        json!([rename("rename_role", "al", "alice")]),
    );
    assert_eq!(
        planned(&existing, &spec),
        [
            "rename role \"al\" to \"alice\"",
            "create role \"al\" in \"neon_superuser\"",
            "give database \"d\" to role \"al\"",
            "prepare schema public and default privileges of database \"d\"",
            "note 1 prepared database(s)",
        ]
    );
}

#[test]
fn a_deleted_role_hands_over_where_it_has_something() {
    let mut existing =
        server(&[("gone", None), ("a", None)], &[("d", "gone"), ("e", "a"), ("f", "gone"), ("g", "a")]);
    let places = [None, Some("e".to_owned()), Some("f".to_owned()), Some("d".to_owned())];
    existing.dependencies.insert("gone".to_owned(), places.into());
    let spec = spec(
        json!([]),
        json!([{ "name": "d", "owner": "a" }, { "name": "e", "owner": "a" }]),
        json!([op("delete_role", "gone"), op("delete_db", "f")]),
    );
    assert_eq!(
        planned(&existing, &spec),
        [
            "drop database \"f\"",
            "give database \"d\" to role \"a\"",
            "hand over what role \"gone\" has in database \"d\" to role \"a\"",
            "hand over what role \"gone\" has in database \"e\" to role \"a\"",
            "hand over what role \"gone\" has in database \"postgres\" to role \"cloud_admin\"",
            "prepare schema public and default privileges of database \"d\"",
            "prepare schema public and default privileges of database \"e\"",
            "drop role \"gone\"",
            "note 2 prepared database(s)",
        ]
    );
}

#[test]
fn an_unlisted_database_of_a_deleted_role_goes_to_the_administrator() {
    let existing = server(&[("old", None)], &[("d", "old")]);
    let spec =
        spec(json!([]), json!([]), json!([rename("rename_role", "old", "new"), op("delete_role", "new")]));
    assert_eq!(
        planned(&existing, &spec),
        [
            "rename role \"old\" to \"new\"",
            "give database \"d\" to role \"cloud_admin\"",
            "drop role \"new\""
        ]
    );
}

#[test]
fn the_impossible_is_refused_by_name() {
    let existing = server(&[("a", None), ("b", None)], &[("d", "a"), ("e", "a")]);
    let with =
        |roles: Value, databases: Value, deltas: Value| refused(&existing, &spec(roles, databases, deltas));
    let none = || json!([]);
    let deltas = |deltas: Value| with(none(), none(), deltas);

    assert_eq!(
        deltas(json!([rename("rename_db", "d", "e")])),
        "cannot rename database \"d\" to \"e\", which exists"
    );
    assert_eq!(
        deltas(json!([rename("rename_role", "a", "b")])),
        "cannot rename role \"a\" to \"b\", which exists"
    );
    assert_eq!(deltas(json!([op("rename_db", "x")])), "the spec renames database \"x\", but not to what");
    let swap = [rename("rename_db", "d", "t"), rename("rename_db", "e", "d"), rename("rename_db", "t", "e")];
    assert!(deltas(json!(swap)).contains("back to a name they started from"));
    assert!(
        deltas(json!([rename("rename_role", "a", "t"), rename("rename_role", "t", "a")])).contains("back to")
    );
    assert!(deltas(json!([op("delete_db", "postgres")])).starts_with("cannot delete database \"postgres\""));
    assert!(deltas(json!([rename("rename_db", "postgres", "p")])).starts_with("cannot rename database"));
    assert!(
        deltas(json!([op("delete_role", "cloud_admin")])).starts_with("cannot delete role \"cloud_admin\"")
    );
    assert!(deltas(json!([op("delete_role", "neon_superuser")])).starts_with("cannot delete role"));
    assert!(deltas(json!([rename("rename_role", "a", "pg_a")])).contains("\"pg_a\" is reserved"));
    assert_eq!(
        with(none(), json!([{ "name": "n", "owner": "nobody" }]), none()),
        "the owner \"nobody\" of database \"n\" neither exists nor is listed"
    );
    assert_eq!(
        with(
            json!([{ "name": "a" }]),
            json!([{ "name": "d", "owner": "a" }]),
            json!([op("delete_role", "a")])
        ),
        "cannot delete role \"a\", which is to own database \"d\""
    );
    assert_eq!(
        with(json!([{ "name": "x" }, { "name": "x", "encrypted_password": MD5 }]), none(), none()),
        "the spec describes role \"x\" twice, and differently"
    );
    assert!(with(json!([{ "name": "public" }]), none(), none()).contains("reserved"));
    assert_eq!(
        with(json!([{ "name": "x\0" }]), none(), none()),
        "cannot create role \"x\\0\" in \"neon_superuser\": the name \"x\\0\" contains a NUL byte"
    );
    assert!(with(json!([{ "name": "x".repeat(64) }]), none(), none()).ends_with("is longer than 63 bytes"));
    assert!(with(none(), json!([{ "name": "", "owner": "a" }]), none()).ends_with("is empty"));
    let option = json!({ "name": "TEMPLATE", "value": "t; DROP ROLE a", "vartype": "enum" });
    let message = with(none(), json!([{ "name": "n", "owner": "a", "options": [option] }]), none());
    assert!(
        message.starts_with("the option \"TEMPLATE\" of database \"n\" is not a single word"),
        "{message}"
    );
    for password in ["hunter2", "SCRAM-SHA-256$4096:c2FsdA==$U3RvcmVk:U2VydmVy", "", "md5"] {
        let message = with(json!([{ "name": "x", "encrypted_password": password }]), none(), none());
        assert_eq!(
            message,
            "the password of role \"x\" is neither a SCRAM-SHA-256 verifier nor an MD5 digest"
        );
    }
}

#[test]
fn a_role_with_objects_behind_a_closed_door_is_not_deleted() {
    let mut existing = server(&[("a", None)], &[("d", "cloud_admin")]);
    existing.dependencies.insert("a".to_owned(), [Some("d".to_owned())].into());
    existing.databases.get_mut("d").unwrap().attributes.allow_connections = Some(false);
    let spec = spec(json!([]), json!([]), json!([op("delete_role", "a")]));
    assert!(refused(&existing, &spec).contains("in database \"d\", which refuses connections"));
}

#[test]
fn options_of_creation_are_not_repeated_when_a_password_changes() {
    let options = ["ADMIN", "ROLE", "USER", "SYSID"].map(|name| option(name, Some("7"), "integer"));
    let mut options = options.to_vec();
    options.push(option("SOMETHING", Some("new"), "enum"));
    let wanted =
        spec(json!([{ "name": "a", "encrypted_password": MD5, "options": options }]), json!([]), json!([]));
    let existing = server(&[("a", None)], &[]);
    let plan = plan(&existing, &wanted, &self::options()).unwrap();
    let sql: Vec<String> = plan.steps().iter().flat_map(|step| step.sql().unwrap()).collect();
    let altered = sql.iter().find(|sql| sql.starts_with("ALTER ROLE")).unwrap();
    assert!(altered.contains("SOMETHING new") && !altered.contains("ADMIN"), "{altered}");
    assert!(
        !altered.contains(" ROLE 7") && !altered.contains("USER") && !altered.contains("SYSID"),
        "{altered}"
    );
}

#[test]
fn concurrency_follows_max_connections() {
    let cases = [(None, 10), (Some(0), 1), (Some(7), 7), (Some(10), 10), (Some(29), 10), (Some(30), 10)];
    for (max, expected) in cases.into_iter().chain([(Some(112), 37), (Some(299), 99), (Some(300), 100)]) {
        assert_eq!(Options::start_concurrency(max), expected, "{max:?}");
    }
}

fn option(name: &str, value: Option<&str>, vartype: &str) -> Value {
    json!({ "name": name, "value": value, "vartype": vartype })
}

#[test]
fn declared_options_are_compared_and_others_left_alone() {
    let mut existing = server(&[("a", None), ("b", None), ("group", None)], &[("d", "a")]);
    existing.members.insert("group".to_owned(), ["b".to_owned()].into());
    let wanted = spec(
        json!([
            { "name": "a", "options": [
                option("NOCREATEDB", None, "bool"), option("CONNECTION LIMIT", Some("5"), "integer"),
                option("IN ROLE", Some("group"), "enum") ] },
            { "name": "b", "options": [
                option("CREATEDB", None, "bool"), option("CONNECTION LIMIT", Some("-1"), "integer"),
                option("IN ROLE", Some("group"), "enum"), option("SOMETHING NEW", None, "bool") ] },
        ]),
        json!([{ "name": "d", "owner": "a", "options": [
            option("LC_COLLATE", Some("C"), "string"), option("CONNECTION LIMIT", Some("9"), "integer") ] }]),
        Value::Null,
    );
    existing.databases.get_mut("d").unwrap().attributes.connection_limit = Some(-1);
    let plan = plan(&existing, &wanted, &options()).unwrap();
    let sql: Vec<String> = plan.steps().iter().flat_map(|step| step.sql().unwrap()).collect();
    assert_eq!(
        sql,
        [
            "ALTER ROLE \"a\" NOCREATEDB CONNECTION LIMIT 5",
            "GRANT \"group\" TO \"a\"",
            "ALTER DATABASE \"d\" CONNECTION LIMIT 9",
        ]
    );
}

#[test]
fn an_unknown_option_goes_with_the_password() {
    let existing = server(&[("a", None)], &[]);
    let options_of = json!([option("SOMETHING NEW", None, "bool")]);
    let role = json!([{ "name": "a", "encrypted_password": SCRAM, "options": options_of }]);
    let plan = plan(&existing, &spec(role, json!([]), Value::Null), &options()).unwrap();
    let expected = format!("ALTER ROLE \"a\" SOMETHING NEW LOGIN PASSWORD '{SCRAM}'");
    assert_eq!(plan.steps()[0].sql().unwrap(), [expected]);
}

#[test]
fn members_may_come_before_their_groups() {
    let member = option("IN ROLE", Some("zoo"), "enum");
    let roles = json!([{ "name": "ape", "options": [member] }, { "name": "zoo" }]);
    assert_eq!(
        planned(&server(&[], &[]), &spec(roles.clone(), json!([]), Value::Null)),
        [
            "create role \"ape\" in \"neon_superuser\"",
            "create role \"zoo\" in \"neon_superuser\"",
            "make role \"ape\" a member of \"zoo\"",
        ]
    );
    let alone = json!([roles[0]]);
    assert_eq!(
        refused(&server(&[], &[]), &spec(alone, json!([]), Value::Null)),
        "role \"ape\" cannot be a member of role \"zoo\", which neither exists nor is listed"
    );
    let gone = spec(json!([roles[0]]), json!([]), json!([op("delete_role", "zoo")]));
    assert!(
        refused(&server(&[("zoo", None)], &[]), &gone).starts_with("cannot delete role \"zoo\", of which")
    );
}

#[test]
fn a_privileged_role_that_lost_something_is_mended() {
    let mut existing = server(&[], &[]);
    existing.members.remove("pg_write_all_data");
    existing.roles.get_mut("neon_superuser").unwrap().attributes.set(Flag::BypassRls, false);
    let plan = plan(&existing, &spec(json!([]), json!([]), Value::Null), &options()).unwrap();
    let sql: Vec<String> = plan.steps().iter().flat_map(|step| step.sql().unwrap()).collect();
    assert_eq!(
        sql,
        ["ALTER ROLE \"neon_superuser\" BYPASSRLS", "GRANT \"pg_write_all_data\" TO \"neon_superuser\""]
    );
}

#[test]
fn databases_are_prepared_once_and_again_when_that_was_undone() {
    let mut existing = server(&[("a", None)], &[("d", "a"), ("e", "a"), ("closed", "a"), ("unlisted", "a")]);
    for name in ["d", "closed", "unlisted", "postgres"] {
        existing.databases.get_mut(name).unwrap().prepared = false;
    }
    existing.databases.get_mut("closed").unwrap().attributes.allow_connections = Some(false);
    let listed = ["d", "e", "closed", "postgres"].map(|name| {
        let owner = if name == "postgres" { "cloud_admin" } else { "a" };
        json!({ "name": name, "owner": owner })
    });
    assert_eq!(
        planned(&existing, &spec(json!([]), json!(listed), Value::Null)),
        ["prepare schema public and default privileges of database \"d\"", "note 1 prepared database(s)"]
    );
}

#[test]
fn the_supervisors_own_objects_depend_on_the_kind_of_server() {
    let mut existing = server(&[], &[]);
    existing.own = OwnObjects { schemas: [("public".to_owned(), true)].into(), ..OwnObjects::default() };
    let mut wanted = spec(json!([]), json!([]), Value::Null);
    wanted.cluster.postgresql_conf =
        Some("shared_preload_libraries = 'neon, pg_stat_statements'\n".to_owned());
    let standard = [
        "create extension \"pg_stat_statements\" in schema \"public\"",
        "create table public.health_check",
        "create the supervisor's bookkeeping in schema neon_migration",
    ];
    assert_eq!(planned(&existing, &wanted), standard);
    let neon = Options { profile: Profile::Neon, ..options() };
    let steps = |existing: &Existing| -> Vec<String> {
        plan(existing, &wanted, &neon).unwrap().steps().iter().map(Step::to_string).collect()
    };
    assert_eq!(
        steps(&existing)[..3],
        [
            "create schema \"neon\"",
            "create extension \"pg_stat_statements\" in schema \"public\"",
            "create extension \"neon\" in schema \"neon\"",
        ]
    );
    existing.own.schemas.insert("neon".to_owned(), true);
    let present =
        |version: &str, schema: &str| ExistingExtension { version: version.into(), schema: schema.into() };
    existing.extensions.insert("pg_stat_statements".to_owned(), present("1.10", "public"));
    existing.extensions.insert("neon".to_owned(), present("1.4", "public"));
    existing.newest.insert("neon".to_owned(), "1.6".to_owned());
    assert_eq!(
        steps(&existing)[..2],
        ["move extension \"neon\" to schema \"neon\"", "update extension \"neon\" from 1.4 to 1.6"]
    );
    existing.extensions.insert("neon".to_owned(), present("1.6", "neon"));
    assert_eq!(steps(&existing)[0], "create table public.health_check");
    existing.own.schemas.remove("public");
    existing.extensions.clear();
    assert!(refused(&existing, &wanted).contains("needs schema \"public\", which does not exist"));
}

#[test]
fn auditing_brings_its_extensions() {
    let existing = server(&[], &[]);
    let mut wanted = spec(json!([]), json!([]), Value::Null);
    for (level, extensions) in [
        (ComputeAudit::Disabled, 0),
        (ComputeAudit::Log, 1),
        (ComputeAudit::Base, 1),
        (ComputeAudit::Hipaa, 2),
        (ComputeAudit::Extended, 2),
        (ComputeAudit::Full, 2),
    ] {
        wanted.audit_log_level = level;
        let steps = planned(&existing, &wanted);
        assert_eq!(steps.iter().filter(|step| step.starts_with("create extension")).count(), extensions);
        assert_eq!(steps.last().is_some_and(|step| step.contains("audit off")), extensions > 0, "{steps:?}");
    }
    let mut silenced = existing;
    silenced.own.audit_silenced = true;
    assert_eq!(planned(&silenced, &wanted).len(), 2);
}

#[test]
fn inherited_subscriptions_are_dropped_once_for_each_timeline() {
    let mut existing = server(&[("a", None)], &[("d", "a"), ("closed", "a")]);
    for name in ["d", "closed"] {
        existing.databases.get_mut(name).unwrap().subscriptions = ["s".to_owned()].into();
    }
    existing.databases.get_mut("closed").unwrap().attributes.allow_connections = Some(false);
    existing.own.timeline = Some("7012/1".to_owned());
    let mut wanted = spec(json!([]), json!([]), Value::Null);
    assert_eq!(planned(&existing, &wanted), [""; 0]);
    wanted.drop_subscriptions_before_start = true;
    let steps = |timeline: &str| {
        [
            "drop 1 subscription(s) in database \"d\"".to_owned(),
            "create schema \"neon\"".to_owned(),
            format!("note that subscriptions were dropped on timeline {timeline}"),
        ]
    };
    assert_eq!(planned(&existing, &wanted), steps("7012/1"));
    wanted.timeline_id = Some("8a7b".to_owned());
    assert_eq!(planned(&existing, &wanted), steps("8a7b"));
    existing.own.subscriptions_dropped = Some("8a7b".to_owned());
    assert_eq!(planned(&existing, &wanted), [""; 0]);
    existing.own.subscriptions_dropped = Some("another".to_owned());
    assert_eq!(planned(&existing, &wanted).len(), 3);
}

#[test]
fn migrations_carry_on_where_they_ended() {
    let mut existing = server(&[], &[]);
    let wanted = spec(json!([]), json!([]), Value::Null);
    assert!(plan(&existing, &wanted, &options()).unwrap().is_empty());
    existing.own.migration = 10;
    let plan = plan(&existing, &wanted, &options()).unwrap();
    assert!(plan.steps().is_empty() && !plan.is_empty());
    let ids: Vec<String> = plan.migrations().iter().map(Step::object).collect();
    assert_eq!(ids, ["11", "12"]);
}

#[test]
fn what_a_user_put_in_place_of_our_own_is_not_touched() {
    let wanted = spec(json!([]), json!([]), Value::Null);
    let mut existing = server(&[], &[]);
    existing.own.schemas.insert("neon".to_owned(), false);
    assert_eq!(planned(&existing, &wanted), [""; 0], "a standard server needs no such schema");
    existing.own.schemas.insert("neon_migration".to_owned(), false);
    assert!(
        refused(&existing, &wanted)
            .starts_with("schema neon_migration belongs to a role that is no superuser")
    );
    existing.own.schemas.insert("neon_migration".to_owned(), true);
    existing.own.foreign = Some("neon_migration.migration_id".to_owned());
    assert!(refused(&existing, &wanted).starts_with("relation neon_migration.migration_id belongs to"));
}
