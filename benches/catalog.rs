//! What bringing a catalog to a spec costs, as ratios to hand-written SQL that does the same in the same run.
//!
//! The floor is what a careful person who knows exactly what is missing would write: the same effects (which is
//! checked, once, before anything is measured), nothing read, everything pipelined, one transaction where one
//! will do, sessions inside of databases as many at a time as ours. Each side gets a fresh copy of the same
//! cluster, the sides take turns, and no figure is asserted. `cargo bench --bench catalog -- roles` runs one part
//! (`databases`, `roles`, `noop`, `program`, `memory`); `ROLES`, `DATABASES` and `PAIRS` change the sizes.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use compute_ctl::catalog::{
    self, Applied, Connection, ConnectionSettings, Existing, Options, Plan, Profile, Step,
};
use compute_ctl::limits;
use compute_ctl::secret::Secret;
use compute_ctl::spec::document::ComputeSpec;
use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio_postgres::types::{FromSql, ToSql, Type};
use tokio_postgres::{Client, NoTls, Row};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/pairs.rs"]
mod pairs;

use cluster::{Cluster, Process, connstr};
use pairs::Pairs;

/// Databases worked on at once, by either side: what a node does that does not know its `max_connections`.
const CONCURRENCY: usize = 10;

/// Statements in a message of the floor's. More are not faster.
const STATEMENTS: usize = 256;

/// Configurations with the same spec, to see whether memory grows with their number.
const RECONFIGURATIONS: usize = 8;

/// The role whose members the others become.
const PRIVILEGED: &str = "neon_superuser";

/// A verifier of the old form, as specs have it. For each of the usual form the server spends milliseconds to see that it is not the
/// empty password's, which would hide whatever else takes time, on both sides.
const VERIFIER: &str = "00000000000000000000000000000000";

fn main() {
    // `cargo test --benches` runs benchmarks too, with this flag, to see that they start at all.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let runs = |name: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name);
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse().ok());
    let (roles, databases) = (number("ROLES").unwrap_or(10_000), number("DATABASES").unwrap_or(1_000));
    let pairs = number("PAIRS").unwrap_or(10);
    let bench = Bench::new();
    println!("PostgreSQL: {}; {pairs} interleaved pairs each\n", bench.cluster.version());
    if runs("databases") {
        bench.make(pairs, &Wanted { roles: 100, databases: 100 });
    }
    if runs("roles") {
        bench.make(pairs, &Wanted { roles, databases: 0 });
    }
    if runs("noop") {
        bench.noop(pairs.max(30), &Wanted { roles, databases });
    }
    if runs("program") {
        bench.program(pairs, &Wanted { roles, databases: 0 });
    }
    if runs("memory") {
        bench.memory(&Wanted { roles, databases: 0 });
    }
}

/// What a spec lists.
struct Wanted {
    roles: usize,
    databases: usize,
}

impl Wanted {
    fn role(number: usize) -> String {
        format!("role_{number}")
    }

    fn database(number: usize) -> String {
        format!("database_{number}")
    }

    fn owner(&self, database: usize) -> String {
        Self::role(database % self.roles)
    }

    fn lists(&self) -> (Vec<Value>, Vec<Value>) {
        let role = |number| json!({ "name": Self::role(number), "encrypted_password": VERIFIER });
        let database = |number| json!({ "name": Self::database(number), "owner": self.owner(number) });
        ((0..self.roles).map(role).collect(), (0..self.databases).map(database).collect())
    }

    fn spec(&self) -> ComputeSpec {
        let (roles, databases) = self.lists();
        let spec = json!({
            "format_version": 1.0,
            "suspend_timeout_seconds": -1,
            "cluster": { "roles": roles, "databases": databases, "settings": [] },
        });
        serde_json::from_value(spec).expect("a spec")
    }

    fn title(&self) -> String {
        format!("{} roles x {} databases", self.roles, self.databases)
    }
}

struct Bench {
    cluster: Cluster,
    runtime: Runtime,
}

impl Bench {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(limits::WORKERS)
            .enable_all()
            .build()
            .expect("threads can be had");
        Self { cluster: Cluster::new(), runtime }
    }

    /// A server on a fresh copy of the cluster, as warm as it gets.
    fn server(&self) -> Process {
        let server = self.cluster.bare(&self.cluster.data());
        self.cluster.answers();
        assert!(self.cluster.query("CHECKPOINT"), "a checkpoint");
        server
    }

    /// Both from an empty cluster to all that is wanted, connecting included.
    fn make(&self, pairs: usize, wanted: &Wanted) {
        let spec = wanted.spec();
        let notes = self.agree(wanted, &spec);
        let mut figures = Pairs::default();
        for _ in 0..pairs {
            let mut server = self.server();
            let begun = Instant::now();
            self.runtime.block_on(by_hand(&connstr(self.cluster.port()), wanted, &notes));
            figures.floor.push(begun.elapsed());
            server.stop(Signal::SIGQUIT);

            let mut server = self.server();
            let begun = Instant::now();
            self.runtime.block_on(async { apply(&self.connect().await, &spec).await });
            figures.ours.push(begun.elapsed());
            server.stop(Signal::SIGQUIT);
        }
        figures.print(&format!("{} to make", wanted.title()), "hand-pipelined SQL", "1.2 p50");
    }

    /// Sees that both sides come to the same. Returns the statement by which prepared databases are noted: it is
    /// the one thing that nobody writes by hand.
    fn agree(&self, wanted: &Wanted, spec: &ComputeSpec) -> Vec<String> {
        let mut server = self.server();
        let (notes, ours) = self.runtime.block_on(async {
            let connection = self.connect().await;
            let (_, plan) = preview(&connection, spec).await;
            let mark = plan.steps().iter().filter(|step| matches!(step, Step::MarkPrepared { .. }));
            let notes = mark.flat_map(|step| step.sql().expect("it was planned")).collect::<Vec<_>>();
            apply(&connection, spec).await;
            (notes, contents(&connection).await)
        });
        server.stop(Signal::SIGQUIT);
        let mut server = self.server();
        self.runtime.block_on(async {
            by_hand(&connstr(self.cluster.port()), wanted, &notes).await;
            let connection = self.connect().await;
            let (_, plan) = preview(&connection, spec).await;
            assert_eq!(plan.steps(), [], "the floor leaves nothing to do");
            let floor = contents(&connection).await;
            let differs: Vec<_> = ours.symmetric_difference(&floor).take(10).collect();
            assert!(differs.is_empty(), "the floor does what we do, and nothing else: {differs:#?}");
        });
        server.stop(Signal::SIGQUIT);
        notes
    }

    /// An apply which has nothing to do, over the very same queries sent at once, and every value of every row looked
    /// at.
    fn noop(&self, pairs: usize, wanted: &Wanted) {
        let spec = wanted.spec();
        let mut server = self.server();
        // It would write, and so take a transaction id, while ours are counted.
        assert!(self.cluster.query("ALTER SYSTEM SET autovacuum = off"));
        assert!(self.cluster.query("SELECT pg_reload_conf()"));
        self.runtime.block_on(async { apply(&self.connect().await, &spec).await });
        assert!(self.cluster.query("VACUUM ANALYZE"));
        let queries = self.queries(&spec);
        let connection = self.runtime.block_on(self.connect());
        let floor = self.runtime.block_on(self.connect());
        let before = self.runtime.block_on(next_transaction(&connection));
        let mut figures = Pairs::default();
        for pair in 0..=pairs {
            let begun = Instant::now();
            let answers = join_all(queries.iter().map(|query| query.ask(floor.client())));
            let seen: usize = self.runtime.block_on(answers).into_iter().sum();
            let below = begun.elapsed();
            assert!(seen > 0, "something is there");

            let begun = Instant::now();
            let applied = self.runtime.block_on(apply(&connection, &spec));
            let above = begun.elapsed();
            assert_eq!((applied.steps, applied.statements), (0, 0), "there is nothing to do");
            if pair > 0 {
                figures.floor.push(below);
                figures.ours.push(above);
            }
        }
        let after = self.runtime.block_on(next_transaction(&connection));
        assert_eq!(before, after, "nothing was written");
        figures.print(&format!("{}, nothing to do", wanted.title()), "the bare reads", "1.5 p50");
        println!("  {} applies: 0 steps, 0 statements, {} transaction ids\n", pairs + 1, after - before);
        server.stop(Signal::SIGINT);
    }

    /// What an apply sends when there is nothing to do.
    fn queries(&self, spec: &ComputeSpec) -> Vec<Query> {
        let tap = Tap::before(&self.cluster);
        let connection = self.runtime.block_on(connect(&tap.connstr));
        tap.take();
        let applied = self.runtime.block_on(apply(&connection, spec));
        assert_eq!(applied.statements, 0, "everything is there");
        Query::all(&tap.take())
    }

    /// The same through the whole program.
    fn program(&self, pairs: usize, wanted: &Wanted) {
        let (roles, databases) = wanted.lists();
        let config = self.cluster.config(&roles, &databases, false);
        let mut figures = Pairs::default();
        for _ in 0..pairs {
            let data = self.cluster.data();
            let begun = Instant::now();
            let mut bare = self.cluster.bare(&data);
            self.cluster.answers();
            self.runtime.block_on(by_hand(&connstr(self.cluster.port()), wanted, &[]));
            figures.floor.push(begun.elapsed());
            bare.stop(Signal::SIGQUIT);

            let data = self.cluster.data();
            let begun = Instant::now();
            let mut supervised = self.cluster.supervised(&data, &config);
            supervised.says("to=running");
            figures.ours.push(begun.elapsed());
            supervised.stop(Signal::SIGTERM);
        }
        let title = format!("exec -> running, {} to make", wanted.title());
        figures.print(&title, "bare postgres -> SELECT 1, hand-pipelined SQL", "no target");
    }

    fn memory(&self, wanted: &Wanted) {
        println!(
            "memory at running, and again after a second configuration with the same spec (target: flat)"
        );
        for wanted in [&Wanted { roles: 0, databases: 0 }, wanted] {
            let (roles, databases) = wanted.lists();
            let config = self.cluster.config(&roles, &databases, false);
            let document = std::fs::read_to_string(&config).expect("it was just written");
            let mut supervised = self.cluster.supervised(&self.cluster.data(), &config);
            supervised.says("to=running");
            let [resident, most] = supervised.memory();
            let again = (0..RECONFIGURATIONS).map(|_| {
                let answer = self.cluster.http("POST", "/configure", &document).unwrap_or_default();
                assert!(answer.starts_with("HTTP/1.1 200"), "configured: {answer}");
                supervised.memory()[0].to_string()
            });
            let again = again.collect::<Vec<_>>().join(", ");
            println!(
                "  {} ({} kB of spec): {resident} kB resident, {most} at most; then {again}",
                wanted.title(),
                document.len() / 1024,
            );
            supervised.stop(Signal::SIGTERM);
        }
        println!();
    }

    async fn connect(&self) -> Connection {
        connect(&connstr(self.cluster.port())).await
    }
}

fn options() -> Options {
    let privileged_role = PRIVILEGED.to_owned();
    Options { privileged_role, profile: Profile::Standard, concurrency: CONCURRENCY }
}

async fn connect(connstr: &str) -> Connection {
    let settings = ConnectionSettings::new(&Secret::new(connstr), Profile::Standard);
    catalog::connect(&settings.expect("a connection string")).await.expect("a session")
}

async fn apply(connection: &Connection, spec: &ComputeSpec) -> Applied {
    let applied = catalog::apply(connection, spec, &options(), &CancellationToken::new()).await;
    applied.expect("the spec can be applied")
}

async fn preview(connection: &Connection, spec: &ComputeSpec) -> (Existing, Plan) {
    let seen = catalog::preview(connection, spec, &options(), &CancellationToken::new()).await;
    seen.expect("the spec is possible")
}

/// The number the next transaction gets that writes something.
async fn next_transaction(connection: &Connection) -> i64 {
    let next = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint";
    connection.client().query_one(next, &[]).await.expect("the server answers").get(0)
}

/// All that an apply can change from outside of databases, and what depends on roles inside of them, with names
/// for numbers.
async fn contents(connection: &Connection) -> BTreeSet<String> {
    let all = "SELECT 'role ' || (to_jsonb(a) - 'oid')::text FROM pg_authid a
        UNION ALL SELECT 'member ' || roleid::regrole || ' ' || member::regrole || ' ' || admin_option
            FROM pg_auth_members
        UNION ALL SELECT 'database ' || datname || ' ' || datdba::regrole || ' ' || COALESCE(datacl::text, '')
            FROM pg_database
        UNION ALL SELECT 'inside ' || COALESCE(d.datname, '') || ' ' || s.classid::regclass || ' '
            || s.refobjid::regrole || ' ' || s.deptype::text
            FROM pg_shdepend s LEFT JOIN pg_database d ON d.oid = s.dbid
            WHERE s.refclassid = 'pg_authid'::regclass
        UNION ALL SELECT 'relation ' || relname || ' ' || relnamespace::regnamespace || ' ' || relowner::regrole
            FROM pg_class WHERE relnamespace::regnamespace::text <> 'pg_toast'";
    let rows = connection.client().query(all, &[]).await;
    rows.expect("the server answers").iter().map(|row| row.get(0)).collect()
}

/// A session as anybody gets one.
async fn open(connstr: &str, database: &str) -> (Client, AbortOnDropHandle<()>) {
    let mut config: tokio_postgres::Config = connstr.parse().expect("a connection string");
    let (client, connection) = config.dbname(database).connect(NoTls).await.expect("a session");
    let driver = tokio::spawn(async move { connection.await.expect("the session works") });
    (client, AbortOnDropHandle::new(driver))
}

/// Sends all before the first answer: each is sent when it is polled for the first time.
async fn pipelined(client: &Client, messages: Vec<String>) {
    let answers = join_all(messages.iter().map(|message| client.batch_execute(message))).await;
    for answer in answers {
        answer.expect("the statements are right");
    }
}

/// One transaction, in the fastest way there is: pipelined messages of many statements each.
async fn transaction(client: &Client, statements: Vec<String>) {
    let all = [vec!["BEGIN".to_owned()], statements, vec!["COMMIT".to_owned()]].concat();
    pipelined(client, all.chunks(STATEMENTS).map(|chunk| chunk.join(";")).collect()).await;
}

/// The floor.
async fn by_hand(connstr: &str, wanted: &Wanted, notes: &[String]) {
    let (client, _driver) = open(connstr, "postgres").await;
    let mut statements = vec![format!(
        "CREATE ROLE {PRIVILEGED} CREATEDB CREATEROLE NOLOGIN REPLICATION BYPASSRLS \
         IN ROLE pg_read_all_data, pg_write_all_data"
    )];
    statements.extend((0..wanted.roles).map(|number| {
        format!(
            "CREATE ROLE {} INHERIT CREATEROLE CREATEDB BYPASSRLS REPLICATION IN ROLE {PRIVILEGED} \
             LOGIN PASSWORD 'md5{VERIFIER}'",
            Wanted::role(number)
        )
    }));
    statements.push(include_str!("../src/catalog/sql/health_check.sql").to_owned());
    statements.push(include_str!("../src/catalog/sql/bookkeeping.sql").to_owned());
    transaction(&client, statements).await;
    if wanted.databases == 0 {
        return;
    }

    let databases = || (0..wanted.databases).map(|number| (Wanted::database(number), wanted.owner(number)));
    // In turn: PostgreSQL is not faster with several sessions.
    let creates = databases().map(|(name, owner)| format!("CREATE DATABASE {name} OWNER {owner}"));
    pipelined(&client, creates.collect()).await;
    stream::iter(databases())
        .for_each_concurrent(CONCURRENCY, |(name, _)| async move {
            let (client, _driver) = open(connstr, &name).await;
            let script = format!(
                "BEGIN;
                 ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON TABLES TO {PRIVILEGED} WITH GRANT OPTION;
                 ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON SEQUENCES TO {PRIVILEGED} WITH GRANT OPTION;
                 COMMIT"
            );
            client.batch_execute(&script).await.expect("the statements are right");
        })
        .await;
    let grants =
        databases().map(|(name, _)| format!("GRANT ALL PRIVILEGES ON DATABASE {name} TO {PRIVILEGED}"));
    let mut statements: Vec<String> = grants.collect();
    statements.extend_from_slice(notes);
    transaction(&client, statements).await;
}

/// A query as it was sent: its text, and the types of its parameters.
struct Query {
    sql: String,
    types: Vec<Type>,
}

impl Query {
    /// The queries in what a client said: each begins with a message of the kind `P`.
    fn all(said: &[u8]) -> Vec<Self> {
        let mut queries = Vec::new();
        let mut rest = said;
        while let [kind, length @ ..] = rest {
            let length = length.first_chunk().map(|length| u32::from_be_bytes(*length)).expect("a message");
            let (message, later) = rest[1..].split_at(length as usize);
            rest = later;
            if *kind != b'P' {
                continue;
            }
            // The statement's name, which it has not, its text, and how many types there are of which number.
            let text: Vec<u8> = message[5..].iter().copied().take_while(|byte| *byte != 0).collect();
            let types = message[5 + text.len() + 3..].chunks_exact(4).map(|oid| {
                let oid = u32::from_be_bytes(oid.try_into().expect("four bytes"));
                Type::from_oid(oid).expect("a type everybody has")
            });
            queries.push(Self { types: types.collect(), sql: String::from_utf8(text).expect("it is text") });
        }
        queries
    }

    /// Sends it, and looks at all of its answer.
    async fn ask(&self, client: &Client) -> usize {
        let list = vec![PRIVILEGED];
        let parameters: Vec<(&(dyn ToSql + Sync), Type)> = self
            .types
            .iter()
            .map(|of| match *of {
                Type::TEXT => (&PRIVILEGED as &(dyn ToSql + Sync), Type::TEXT),
                Type::TEXT_ARRAY => (&list as &(dyn ToSql + Sync), Type::TEXT_ARRAY),
                _ => panic!("what would {of} be a parameter for?"),
            })
            .collect();
        let rows = client.query_typed(&self.sql, &parameters).await.expect("the query is right");
        let bytes = |row: &Row| (0..row.len()).map(|column| row.get::<_, Bytes>(column).0).sum::<usize>();
        rows.iter().map(bytes).sum()
    }
}

/// The length of a value of any type.
struct Bytes(usize);

impl<'a> FromSql<'a> for Bytes {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(raw.len()))
    }

    fn from_sql_null(_: &Type) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(0))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

/// Stands before the server, passes one session on, and keeps what its client says.
struct Tap {
    connstr: String,
    said: Arc<Mutex<Vec<u8>>>,
}

impl Tap {
    fn before(cluster: &Cluster) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let connstr = connstr(port);
        let said = Arc::new(Mutex::new(Vec::new()));
        let (keep, server) = (Arc::clone(&said), ("127.0.0.1", cluster.port()));
        std::thread::spawn(move || {
            let (mut client, _) = listener.accept().expect("somebody connects");
            let mut server = TcpStream::connect(server).expect("the server is there");
            let (mut back, mut from) =
                (client.try_clone().expect("a socket"), server.try_clone().expect("a socket"));
            std::thread::spawn(move || std::io::copy(&mut from, &mut back));
            let mut chunk = vec![0; 64 * 1024];
            while let Ok(read @ 1..) = client.read(&mut chunk) {
                keep.lock().expect("nobody panicked").extend_from_slice(&chunk[..read]);
                if server.write_all(&chunk[..read]).is_err() {
                    return;
                }
            }
        });
        Self { connstr, said }
    }

    /// What was said since the last time.
    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut *self.said.lock().expect("nobody panicked"))
    }
}
