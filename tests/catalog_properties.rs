//! Random pairs of specs on a real PostgreSQL, with other people at work in between.
//!
//! For each spec that is applied: what the server has afterwards is what a second opinion says (see
//! [`support::oracle`]), what the server's log shows is what the plan said beforehand, statement by statement and
//! session by session, and a second apply reads once and writes nothing. A spec that is refused changes nothing.
//!
//! `CATALOG_CASES` asks for so many cases of each kind, drawn anew with each run. Without it they are few and
//! always the same. A failing pair is shrunk and printed as a document.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod support;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use compute_ctl::catalog::{
    self, Applied, ApplyError, Connection, ConnectionSettings, Options, Plan, Profile, Step,
};
use compute_ctl::limits;
use compute_ctl::secret::Secret;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};
use serde_json::{Value, json};
use support::names::ident;
use support::oracle;
use support::pg::{ADMIN, Entry, Log, Server};
use support::specs::{ADMINS_TEMPLATE, Case, PRIVILEGED, cases, document};
use support::view::{Inside, Observer, View};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

/// Cases of each kind in an ordinary run.
const CASES: u32 = 24;

fn options() -> Options {
    Options { privileged_role: PRIVILEGED.to_owned(), profile: Profile::Standard, concurrency: 2 }
}

fn no_spec() -> Value {
    json!({
        "format_version": 1.0,
        "suspend_timeout_seconds": -1,
        "cluster": { "roles": [], "databases": [] },
    })
}

/// What the server says of a session whose client has gone.
const ENDINGS: [&str; 3] = [
    "terminating connection due to administrator command",
    "could not send data to client",
    "connection to client lost",
];

/// A server with the tests' own sessions, to which it returns after each case.
struct Bench {
    admin: Observer,
    /// Puts marks into the log.
    marker: Observer,
    log: Log,
    marks: usize,
    /// What a case starts from.
    base: View,
    /// What is inside of a new database.
    fresh: Inside,
    server: Server,
}

/// What the server says a session of the catalog's executed.
#[derive(Debug, PartialEq, Eq)]
struct Session {
    database: String,
    statements: Vec<String>,
}

impl Bench {
    async fn new() -> Self {
        let server = Server::start_with_log("autovacuum = off\ntimezone = 'UTC'\nmax_connections = 30");
        let admin = Observer::enter(&server, "postgres").await;
        admin.run(&format!("CREATE DATABASE {}", ident(ADMINS_TEMPLATE))).await;
        admin.run("SET client_min_messages = error").await;
        let inside = Observer::enter(&server, ADMINS_TEMPLATE).await;
        let fresh = inside.inside().await;
        inside.run(&format!("ALTER SCHEMA public OWNER TO {ADMIN}")).await;
        // The server copies no database that somebody is in.
        drop(inside);
        let sql = format!("ALTER DATABASE {} ALLOW_CONNECTIONS false", ident(ADMINS_TEMPLATE));
        admin.run(&sql).await;
        let gone = format!(
            "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE datname = '{ADMINS_TEMPLATE}'"
        );
        admin.rows(&gone).await;
        let marker = Observer::enter_with(&server, "postgres", "-c log_statement=all").await;
        let log = Log::of(&server);
        let mut bench = Self { admin, marker, log, marks: 0, base: View::default(), fresh, server };
        let main = bench.session().await;
        let token = CancellationToken::new();
        let applied = catalog::apply(&main, &document(&no_spec()), &options(), &token).await.unwrap();
        catalog::migrations::run(&main, &applied.migrations, &token).await.unwrap();
        bench.base = bench.admin.view(&bench.server).await;
        bench
    }

    /// A session of the catalog's, every statement of which is logged.
    async fn session(&self) -> Connection {
        let connstr = self.server.connstr("postgres");
        let connstr = Secret::new(format!("{} options='-c log_statement=all'", connstr.reveal()));
        let settings = ConnectionSettings::new(&connstr, Profile::Standard).unwrap();
        catalog::connect(&settings).await.unwrap()
    }

    /// What the catalog's sessions have had logged since the last call, by session, in order of their first word.
    async fn logged(&mut self) -> Vec<Session> {
        self.marks += 1;
        let mark = format!("mark {} of this test", self.marks);
        self.marker.run(&format!("SELECT '{mark}'")).await;
        let mut sessions: Vec<(i64, Session)> = Vec::new();
        for Entry { pid, database, application, message } in self.log.until(&mark) {
            // Newer servers are told so at the start of each session; and one that we have left already may be ended
            // by the drop of its database.
            let beside = ENDINGS.iter().any(|ending| message.starts_with(ending))
                || message.starts_with("statement: SET transaction_");
            if application != "compute_ctl:apply_config" || beside {
                continue;
            }
            match sessions.iter_mut().find(|(of, _)| *of == pid) {
                Some((_, session)) => session.statements.push(message),
                None => sessions.push((pid, Session { database, statements: vec![message] })),
            }
        }
        sessions.into_iter().map(|(_, session)| session).collect()
    }

    /// Applies and judges. Whether it was possible.
    async fn apply(&mut self, spec: &Value) -> Result<bool, String> {
        let (spec, options, token) = (document(spec), options(), CancellationToken::new());
        let before = self.admin.view(&self.server).await;
        let dependencies = self.admin.dependencies().await;
        let expected = oracle::expect(&before, &dependencies, &self.fresh, &spec);
        let main = self.session().await;
        self.logged().await;
        let preview = catalog::preview(&main, &spec, &options, &token).await;
        let reads = self.logged().await;
        if reads.len() != 1 || !reads[0].statements.iter().all(|sql| sql.starts_with("execute ")) {
            return Err(format!("a preview reads, in one session: {reads:#?}"));
        }
        let (plan, expected) = match (preview, expected) {
            (Ok((_, plan)), Ok(expected)) => (plan, expected),
            (Err(ApplyError::Plan(error)), Err(_)) => {
                let again = catalog::apply(&main, &spec, &options, &token).await;
                same(
                    "errors of preview and apply",
                    &format!("{:?}", again.unwrap_err()),
                    &format!("{:?}", ApplyError::Plan(error)),
                )?;
                same("what a refused apply executes", &self.logged().await, &reads)?;
                same("a server after a refused apply", &self.admin.view(&self.server).await, &before)?;
                same("dependencies after a refused apply", &self.admin.dependencies().await, &dependencies)?;
                return Ok(false);
            }
            (Err(error), Ok(_)) => return Err(format!("refused, but possible: {error:?}")),
            (Err(error), Err(_)) => return Err(format!("found out too late: {error:?}")),
            (Ok((_, plan)), Err(why)) => return Err(format!("impossible ({why}), but planned: {plan:#?}")),
        };
        let applied = catalog::apply(&main, &spec, &options, &token).await;
        let mut executed = self.logged().await;
        let applied = applied.map_err(|error| format!("{error}: {error:?}\n{:#?}", plan.steps()))?;
        if applied.steps != plan.steps().len() || !applied.migrations.is_empty() {
            return Err(format!("{applied:?} is not {plan:?}"));
        }
        let mut promised = promise(&plan, &reads[0]);
        promised[1..].sort_by(|a, b| (&a.database, &a.statements).cmp(&(&b.database, &b.statements)));
        executed[1..].sort_by(|a, b| (&a.database, &a.statements).cmp(&(&b.database, &b.statements)));
        same("what the log shows", &executed, &promised)?;
        let after = self.admin.view(&self.server).await;
        compare(&after, expected)?;

        let xmax = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text";
        let transactions = self.admin.text(xmax).await;
        let again = catalog::apply(&main, &spec, &options, &token).await;
        let executed = self.logged().await;
        let again = again.map_err(|error| format!("the second apply: {error:?}"))?;
        same("what is left for a second apply", &again, &Applied::default())
            .map_err(|error| format!("{error}\n{executed:#?}"))?;
        same("what a second apply executes", &executed, &reads)?;
        same("the next transaction", &self.admin.text(xmax).await, &transactions)?;
        Ok(true)
    }

    /// Whether the second spec was possible.
    async fn case(&mut self, case: &Case) -> Result<bool, String> {
        let done = self.apply(&case.first).await.map_err(|error| format!("the first spec: {error}"))?;
        let mut sessions = Vec::new();
        if done {
            for database in &case.sessions {
                sessions.push(Observer::enter(&self.server, database).await);
            }
            for (database, sql) in &case.acts {
                if database == "postgres" {
                    self.admin.run(sql).await;
                } else {
                    Observer::enter(&self.server, database).await.run(sql).await;
                }
            }
            if case.again {
                self.apply(&case.first).await.map_err(|error| format!("the first spec again: {error}"))?;
            }
        }
        self.apply(&case.second).await.map_err(|error| format!("the second spec: {error}"))
    }

    /// Takes back what a case has left.
    async fn clean(&self) {
        let admin = &self.admin;
        admin.run("ALTER DATABASE postgres RESET ALL").await;
        admin.run(&format!("ALTER ROLE {ADMIN} RESET ALL")).await;
        let bases: Vec<String> = self.base.databases.keys().map(|name| format!("'{name}'")).collect();
        let bases = bases.join(", ");
        let free = format!(
            "UPDATE pg_database SET datconnlimit = -1, datallowconn = true, datistemplate = false \
             WHERE datname NOT IN ({bases})"
        );
        admin.run(&free).await;
        let databases = format!(
            "SELECT d.datname::text, EXISTS (SELECT FROM pg_subscription WHERE subdbid = d.oid) \
             FROM pg_database d WHERE datname NOT IN ({bases})"
        );
        for row in admin.rows(&databases).await {
            let name: String = row.get(0);
            if row.get(1) {
                let inside = Observer::enter(&self.server, &name).await;
                let mine = "SELECT subname::text FROM pg_subscription s \
                            JOIN pg_database d ON d.oid = s.subdbid AND d.datname = current_database()";
                for row in inside.rows(mine).await {
                    let name = ident(row.get(0));
                    inside.run(&format!("ALTER SUBSCRIPTION {name} SET (slot_name = NONE)")).await;
                    inside.run(&format!("DROP SUBSCRIPTION {name}")).await;
                }
            }
            admin.run(&format!("DROP DATABASE {} WITH (FORCE)", ident(&name))).await;
        }
        admin.run(support::acts::CLEAN).await;
        let roles = "SELECT rolname::text FROM pg_authid WHERE rolname !~ '^pg_'";
        let roles = admin.rows(roles).await.iter().map(|row| row.get::<_, String>(0)).collect::<Vec<_>>();
        let roles: Vec<String> = roles
            .iter()
            .filter(|name| !self.base.roles.contains_key(*name))
            .map(|name| ident(name))
            .collect();
        if !roles.is_empty() {
            // What a role passes on outlives its own right to it as long as a group of its has that too.
            let members = "SELECT g.rolname::text, m.rolname::text FROM pg_auth_members a \
                           JOIN pg_authid g ON g.oid = a.roleid JOIN pg_authid m ON m.oid = a.member";
            for row in admin.rows(members).await {
                let (group, member) = (ident(row.get(0)), ident(row.get(1)));
                if roles.contains(&member) {
                    admin.run(&format!("REVOKE {group} FROM {member}")).await;
                }
            }
            for role in &roles {
                admin.run(&format!("ALTER ROLE {role} NOSUPERUSER")).await;
            }
            for role in &roles {
                admin.run(&format!("DROP OWNED BY {role} CASCADE")).await;
            }
            admin.run(&format!("DROP ROLE {}", roles.join(", "))).await;
        }
        admin
            .run(&format!(
                "ALTER ROLE {PRIVILEGED} CREATEDB CREATEROLE NOLOGIN REPLICATION BYPASSRLS; \
             GRANT pg_write_all_data TO {PRIVILEGED}; DELETE FROM neon_migration.prepared_database"
            ))
            .await;
    }
}

/// The sessions in which a plan should be executed, the main one first. It begins with what is read.
fn promise(plan: &Plan, reads: &Session) -> Vec<Session> {
    let mut main: Vec<String> = reads.statements.clone();
    let mut others = Vec::new();
    let statement = |sql: &str| format!("statement: {sql}");
    let transaction = |steps: &[&Step]| {
        let inner: Vec<String> = steps.iter().flat_map(|step| step.sql().unwrap()).collect();
        let begun = std::iter::once("BEGIN".to_owned()).chain(inner);
        let whole: Vec<String> = begun.chain(["COMMIT".to_owned()]).collect();
        assert!(whole.len() <= limits::CATALOG_BATCH, "all of it fits into one message");
        vec![statement(&whole.join(";\n"))]
    };
    // Alone, in a transaction of the main session, or inside of databases.
    let kind = |step: &Step| match step {
        Step::CreateDatabase { .. } | Step::DropDatabase { .. } => 0,
        step if step.database().is_some() => 2,
        _ => 1,
    };
    let steps: Vec<&Step> = plan.steps().iter().collect();
    for stage in steps.chunk_by(|a, b| kind(a) == kind(b)) {
        match kind(stage[0]) {
            0 => {
                main.extend(stage.iter().flat_map(|step| step.sql().unwrap()).map(|sql| statement(&sql)));
            }
            1 => main.extend(transaction(stage)),
            _ => {
                let mut places: BTreeMap<&str, Vec<&Step>> = BTreeMap::new();
                for step in stage {
                    places.entry(step.database().unwrap()).or_default().push(step);
                }
                for (database, steps) in places {
                    let statements = transaction(&steps);
                    if database == "postgres" {
                        main.extend(statements);
                    } else {
                        others.push(Session { database: database.to_owned(), statements });
                    }
                }
            }
        }
    }
    let mut sessions = vec![Session { database: reads.database.clone(), statements: main }];
    sessions.append(&mut others);
    sessions
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, is: &T, should: &T) -> Result<(), String> {
    if is == should { Ok(()) } else { Err(format!("{what} is {is:#?}\nand should be {should:#?}")) }
}

/// Part by part, so that the difference is found in the message.
fn compare(after: &View, expected: View) -> Result<(), String> {
    let names = |view: &View| {
        (view.roles.keys().cloned().collect::<Vec<_>>(), view.databases.keys().cloned().collect::<Vec<_>>())
    };
    same("names of roles and databases", &names(after), &names(&expected))?;
    for (name, role) in expected.roles {
        same(&format!("role {name:?}"), &after.roles[&name], &role)?;
    }
    same("members", &after.members, &expected.members)?;
    for (name, mut database) in expected.databases {
        let is = &after.databases[&name];
        // Nobody could look into it before it was opened.
        if database.inside.is_none() && database.allow {
            database.inside.clone_from(&is.inside);
        }
        same(&format!("database {name:?}"), is, &database)?;
    }
    same("the note of dropped subscriptions", &after.dropped_on, &expected.dropped_on)?;
    same("the owner of schema neon", &after.neon, &expected.neon)
}

fn judge(most_acts: usize) {
    let asked =
        std::env::var("CATALOG_CASES").ok().map(|cases| cases.parse().expect("CATALOG_CASES is a number"));
    let config = Config {
        cases: asked.unwrap_or(CASES),
        failure_persistence: None,
        max_shrink_iters: 100,
        ..Config::default()
    };
    let mut runner = match asked {
        Some(_) => TestRunner::new(config),
        None => TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha)),
    };
    let runtime = Runtime::new().unwrap();
    let bench: RefCell<Option<Bench>> = RefCell::new(None);
    let (possible, refused) = (Cell::new(0), Cell::new(0));
    let result = runner.run(&cases(most_acts), |case| {
        runtime.block_on(async {
            // One that a failure has left in an unknown state is not used again.
            let taken = bench.borrow_mut().take();
            let mut ours = match taken {
                Some(bench) => bench,
                None => Bench::new().await,
            };
            let result = ours.case(&case).await;
            let count = if matches!(result, Ok(true)) { &possible } else { &refused };
            count.set(count.get() + 1);
            ours.clean().await;
            let left = ours.admin.view(&ours.server).await;
            let clean = same("a server between two cases", &left, &ours.base);
            if clean.is_ok() {
                *bench.borrow_mut() = Some(ours);
            }
            result.map(drop).and(clean).map_err(TestCaseError::fail)
        })
    });
    if let Err(failure) = result {
        panic!("{failure}");
    }
    let (possible, refused) = (possible.get(), refused.get());
    eprintln!("second specs: {possible} applied, {refused} refused");
    assert!(possible > refused && refused > 0, "the cases are of both kinds");
}

#[test]
fn a_server_follows_its_specs() {
    judge(0);
}

#[test]
fn a_server_follows_its_specs_whatever_others_do() {
    judge(6);
}
