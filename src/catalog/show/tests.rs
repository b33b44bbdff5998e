use serde_json::{Value, json};

use super::*;
use crate::catalog::attributes::RoleAttributes;
use crate::catalog::step::Password;
use crate::limits;
use crate::secret::Secret;
use crate::spec::document::GenericOption;

const VERIFIER: &str = "md50123456789abcdef0123456789abcdef";

fn existing() -> Existing {
    Existing {
        server_version: 150_004,
        current_database: "postgres".to_owned(),
        current_user: "cloud_admin".to_owned(),
        ..Existing::default()
    }
}

fn shown(steps: Vec<Step>, migrations: Vec<Step>) -> PlanDocument {
    let plan = Plan::new(steps, migrations).expect("the steps are legal");
    document(&existing(), &plan, Profile::Standard).expect("they were rendered before")
}

fn create_role(name: &str) -> Step {
    let mut attributes = RoleAttributes::default();
    attributes.member_of.insert("neon_superuser".to_owned());
    Step::CreateRole { name: name.to_owned(), attributes, verifier: Some(Secret::new(VERIFIER)) }
}

fn drop_database(name: &str) -> Step {
    Step::DropDatabase { name: name.to_owned(), is_template: false }
}

/// One of each kind of change, in several places.
fn mixed() -> PlanDocument {
    let limit =
        GenericOption { name: "CONNECTION LIMIT".into(), value: Some("7".into()), vartype: "integer".into() };
    let prepare = |database: &str| Step::PrepareDatabase {
        database: database.to_owned(),
        owner: "app".to_owned(),
        web_access: false,
        privileged: "neon_superuser".to_owned(),
    };
    let steps = vec![
        create_role("app"),
        Step::AlterRole {
            name: "bo".to_owned(),
            attributes: RoleAttributes::parse(&[limit]).expect("it is one"),
            password: Password::Set(None),
        },
        Step::DropSubscriptions { database: "old".to_owned(), names: ["s 1".to_owned()].into() },
        drop_database("old"),
        Step::CreateDatabase { name: "app".to_owned(), owner: "app".to_owned(), options: Vec::new() },
        prepare("b=2"),
        prepare("app"),
        Step::CreateHealthCheck,
    ];
    let migration = crate::catalog::migrations::pending(11).next().expect("there is number 12");
    let migrate = Step::Migrate {
        migration,
        privileged: "neon_superuser".to_owned(),
        server_version: 150_004,
        profile: Profile::Standard,
    };
    shown(steps, vec![migrate])
}

const PLAIN: &str = r#"PostgreSQL 15.4, database "postgres":

  +  create role "app" in "neon_superuser"
  ~! remove password, and set options, of role "bo": CONNECTION LIMIT 7
  -! drop 1 subscription(s) in database "old": "s 1"
  -! drop database "old"
  +  create database "app" owned by "app"
  ~  prepare schema public and default privileges of database "app"
  ~  prepare schema public and default privileges of database "b=2"
  +  create table public.health_check

Afterwards, while the server serves:

  ~  migration 12: the privileged role may signal backends, and pass that on

`!` marks what nobody can bring back: data, or who was allowed what.
Plan: 3 to add, 3 to change, 2 to remove (3 destructive), then 1 migration.
"#;

#[test]
fn people_see_what_is_done_in_the_order_of_execution() {
    assert_eq!(mixed().for_people(Style::default()), PLAIN);
}

#[test]
fn colours_say_nothing_that_is_not_said_without_them() {
    let colored = mixed().for_people(Style { color: true, all: false });
    let mut plain = colored.clone();
    for code in ["\u{1b}[32m", "\u{1b}[33m", "\u{1b}[1;31m", "\u{1b}[1m", "\u{1b}[0m"] {
        assert!(colored.contains(code), "{code:?} is not used: {colored:?}");
        plain = plain.replace(code, "");
    }
    assert_eq!(plain, PLAIN);
    for line in [
        "  \u{1b}[32m+\u{1b}[0m  create role \"app\" in \"neon_superuser\"",
        "  \u{1b}[33m~\u{1b}[0m  prepare schema public and default privileges of database \"app\"",
        "  \u{1b}[1;31m-! drop database \"old\"\u{1b}[0m",
    ] {
        assert!(colored.lines().any(|found| found == line), "{line:?} is not in {colored:?}");
    }
}

#[test]
fn the_document_is_what_programs_rely_on() {
    let document = mixed();
    let json = document.to_json().expect("it is JSON");
    assert_eq!(serde_json::from_str::<PlanDocument>(&json).expect("it reads back"), document);
    let value: Value = serde_json::from_str(&json).expect("it is JSON");
    assert_eq!(value["summary"], json!({ "add": 3, "change": 3, "remove": 2, "destructive": 3 }));
    assert_eq!(value["database"], "postgres");
    assert_eq!(value["server_version"], 150_004);
    assert_eq!(value["profile"], "standard");
    assert_eq!(
        value["changes"][0],
        json!({
            "action": "create_role", "change": "add", "destructive": false, "kind": "role", "name": "app",
            "transaction": 1, "text": "create role \"app\" in \"neon_superuser\"",
            "sql": ["CREATE ROLE \"app\" IN ROLE \"neon_superuser\" LOGIN PASSWORD '<secret>'"],
        })
    );
    assert_eq!(value["changes"][1]["detail"], "CONNECTION LIMIT 7");
    assert_eq!(value["changes"][2]["kind"], "subscription");
    assert_eq!(value["changes"][2]["database"], "old");
    let transactions: Vec<Value> = document.changes.iter().map(|change| json!(change.transaction)).collect();
    // Dropping and creating databases is outside of transactions, and each database has one of its own.
    assert_eq!(json!(transactions), json!([1, 1, 2, null, null, 3, 4, 5]));
    assert_eq!(value["migrations"][0]["kind"], "migration");
    assert_eq!(value["migrations"][0]["transaction"], 6);
    assert!(value.get("skipped").is_none());
    assert!(!json.contains(&VERIFIER[3..]), "{json}");
}

#[test]
fn nothing_to_do_is_said_in_one_line() {
    let none = shown(Vec::new(), Vec::new());
    assert!(none.is_empty());
    assert_eq!(
        none.for_people(Style::default()),
        "No changes. Roles and databases are what the spec says.\n"
    );
    assert_eq!(none.script().as_deref(), Ok("-- No changes. Roles and databases are what the spec says.\n"));
}

#[test]
fn a_spec_that_skips_the_catalog_says_so() {
    let told = |reason, profile| PlanDocument::skipped(reason, profile).for_people(Style::default());
    let standard = told(Skipped::SkipPgCatalogUpdates, Profile::Standard);
    assert!(standard.starts_with("No changes. Roles and databases were not compared: "), "{standard}");
    assert!(standard.contains("`skip_pg_catalog_updates`") && !standard.contains("extension"), "{standard}");
    assert!(told(Skipped::SkipPgCatalogUpdates, Profile::Neon).contains("extension neon"));
    assert!(told(Skipped::NotPrimary, Profile::Standard).contains("primary"));
    let json = PlanDocument::skipped(Skipped::NotPrimary, Profile::Neon).to_json().expect("it is JSON");
    let value: Value = serde_json::from_str(&json).expect("it is JSON");
    assert_eq!((&value["skipped"], &value["database"]), (&json!("not_primary"), &Value::Null));
    assert_eq!(serde_json::from_str::<PlanDocument>(&json).expect("it reads back").changes, []);
}

#[test]
fn a_long_plan_is_bounded_and_hides_nothing_destructive() {
    let mut steps: Vec<Step> = (0..10_000).map(|number| create_role(&format!("r{number}"))).collect();
    steps.push(drop_database("precious"));
    let document = shown(steps, Vec::new());
    let page = document.for_people(Style::default());
    let ends: Vec<&str> = page.lines().skip(limits::PLAN_LINES + 2).collect();
    assert_eq!(
        ends,
        [
            "  … further down, 1 destructive:",
            "  -! drop database \"precious\"",
            "  … and 9900 more: 9900 × create_role (--all lists them)",
            "",
            "`!` marks what nobody can bring back: data, or who was allowed what.",
            "Plan: 10000 to add, 0 to change, 1 to remove (1 destructive).",
        ]
    );
    let all = document.for_people(Style { all: true, color: false });
    assert_eq!(all.lines().filter(|line| line.starts_with("  +  ")).count(), 10_000);
    assert!(!all.contains('…'));

    // So many destructive steps that they cannot all be listed are counted as such.
    let many = shown((0..10_000).map(|number| drop_database(&format!("d{number}"))).collect(), Vec::new());
    let page = many.for_people(Style::default());
    assert!(page.contains("… further down, 9900 destructive:"), "{page}");
    assert!(page.contains("… and 9800 more: 9800 × drop_database (!) (--all lists them)"), "{page}");
}

#[test]
fn no_name_reaches_a_terminal_as_more_than_text() {
    for name in ["\u{1b}[2Jx", "a\nb", "\r", "\u{9b}31m", "\u{202e}evil", "\u{200b}", "\u{7}", "\u{7f}"] {
        let document = shown(
            vec![
                create_role(name),
                drop_database(name),
                Step::DropSubscriptions { database: name.to_owned(), names: [name.to_owned()].into() },
                Step::UpdateExtension { name: "neon", from: name.to_owned(), to: name.to_owned() },
            ],
            Vec::new(),
        );
        let forms = [
            document.for_people(Style::default()),
            document.to_json().expect("it is JSON"),
            document.script().expect("the statements are ours"),
        ];
        for form in &forms {
            let bad = form.chars().find(|c| escape::is_misleading(*c) && *c != '\n');
            assert_eq!(bad, None, "{form}");
        }
        let [people, json, script] = forms;
        assert_eq!(people.lines().count(), 9, "a name makes no line: {people}");
        assert_eq!(serde_json::from_str::<PlanDocument>(&json).expect("it reads back"), document);
        assert!(script.lines().all(|line| !line.starts_with('b')), "{script}");
    }
}

#[test]
fn the_script_is_what_an_apply_does() {
    let script = mixed().script().expect("the statements are ours");
    let lines: Vec<&str> = script.lines().filter(|line| !line.starts_with("  ")).collect();
    let body = lines.iter().position(|line| line.is_empty()).expect("there is a head");
    assert_eq!(lines[0], "-- Plan: 3 to add, 3 to change, 2 to remove (3 destructive), then 1 migration.");
    assert!(lines[..body].contains(&"\\set ON_ERROR_STOP on"), "{script}");
    assert!(lines[..body].iter().any(|line| line.starts_with("-- 1 secret(s) are masked.")), "{script}");
    let expected = r#"
BEGIN;
-- + create role "app" in "neon_superuser"
--   secret_1: the verifier of its password
CREATE ROLE "app" IN ROLE "neon_superuser" LOGIN PASSWORD :'secret_1';
-- ~! remove password, and set options, of role "bo"
ALTER ROLE "bo" CONNECTION LIMIT 7 LOGIN PASSWORD NULL;
COMMIT;

\connect old
:guard
BEGIN;
-- -! drop 1 subscription(s) in database "old"
ALTER SUBSCRIPTION "s 1" DISABLE;
ALTER SUBSCRIPTION "s 1" SET (slot_name = NONE);
DROP SUBSCRIPTION "s 1";
COMMIT;

\connect postgres
:guard
-- -! drop database "old"
SELECT pg_catalog.pg_terminate_backend(active_pid, 5000) FROM pg_catalog.pg_replication_slots WHERE database = 'old' AND active;
DROP DATABASE IF EXISTS "old" WITH (FORCE);

-- + create database "app" owned by "app"
CREATE DATABASE "app" OWNER "app";

\connect app
:guard
BEGIN;
"#;
    let found = lines[body..].join("\n");
    assert!(found.starts_with(expected), "{found}");
    assert!(
        found.contains("COMMIT;\n\n\\connect -reuse-previous=on '\"dbname=\\'b=2\\'\"'\n:guard\nBEGIN;\n"),
        "{found}"
    );
    assert!(found.ends_with("COMMIT;\n\n\\o"), "{found}");
    assert!(!script.contains("<secret>") && !script.contains(&VERIFIER[3..]), "{script}");
}

#[test]
fn a_document_of_somebody_elses_cannot_command_psql() {
    let mut document = mixed();
    document.changes[0].sql = vec!["SELECT 1\n\\! touch /tmp/x".to_owned()];
    let error = document.script().expect_err("it is refused");
    assert_eq!(error.what, "a backslash");
    assert!(error.to_string().contains("create role"), "{error}");
    document.changes[0].text = "a\n\\! touch /tmp/x".to_owned();
    document.changes[0].sql = Vec::new();
    document.changes[4].database = Some("x\n\\! touch /tmp/x".to_owned());
    let script = document.script().expect("it is harmless");
    assert!(script.lines().all(|line| !line.starts_with("\\!")), "{script}");
}
