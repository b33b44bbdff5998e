//! The program itself, run as a process on a real PostgreSQL, in a directory and on ports of its own.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::pg::{self, ADMIN};
use super::processes::{self, Process};

/// How long anything may take before a test fails. Nothing takes a fifth of it on an idle machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// The identity the nodes are started with.
pub(crate) const COMPUTE_ID: &str = "compute-under-test";

/// The first key of RFC 8032's test vectors, section 7.1, as PKCS #8, so nobody can mistake it for a secret.
const PRIVATE_KEY: [u8; 48] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20, 0x9d,
    0x61, 0xb1, 0x9d, 0xef, 0xfd, 0x5a, 0x60, 0xba, 0x84, 0x4a, 0xf4, 0x92, 0xec, 0x2c, 0xc4, 0x44, 0x49,
    0xc5, 0x69, 0x7b, 0x32, 0x69, 0x19, 0x70, 0x3b, 0xac, 0x03, 0x1c, 0xae, 0x7f, 0x60,
];
pub(crate) const PUBLIC_KEY: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";

/// Looks until there is something to see. This is the only place that waits; it fails at a deadline.
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(Instant::now() < end, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A token for the external server of [`COMPUTE_ID`].
pub(crate) fn token(compute_id: &str) -> String {
    signed(&json!({ "compute_id": compute_id }))
}

/// A token with any claims.
pub(crate) fn signed(claims: &Value) -> String {
    let key = EncodingKey::from_ed_der(&PRIVATE_KEY);
    jsonwebtoken::encode(&Header::new(Algorithm::EdDSA), claims, &key).expect("the key is one")
}

/// A directory with a config, a data directory and ports. Nodes run in it, one after the other or at once.
pub(crate) struct Place {
    /// Removed at drop.
    _dir: TempDir,
    path: PathBuf,
    cache: Option<Arc<TempDir>>,
    pub(crate) external: u16,
    pub(crate) internal: u16,
    pub(crate) postgres: u16,
    /// What nodes are told of how to reach Postgres.
    pub(crate) connstr: String,
}

/// Templates of `initdb`, shared by the tests that run at the same time.
static CACHE: Mutex<Weak<TempDir>> = Mutex::new(Weak::new());

fn temp_dir() -> TempDir {
    let dir = TempDir::with_prefix("compute_ctl-test-").expect("a temporary directory");
    pg::give(dir.path());
    dir
}

fn cache() -> Arc<TempDir> {
    let mut shared = CACHE.lock().unwrap_or_else(PoisonError::into_inner);
    shared.upgrade().unwrap_or_else(|| {
        let made = Arc::new(temp_dir());
        *shared = Arc::downgrade(&made);
        made
    })
}

/// A port nobody has: below the range from which the kernel hands out ports by itself, and another one for each
/// call of this process.
pub(crate) fn port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id() % 97).expect("below 97") * 120;
    loop {
        let port = 20_000 + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % 12_000;
        let free = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok();
        if free && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

impl Place {
    pub(crate) fn new() -> Self {
        let dir = temp_dir();
        let path = fs::canonicalize(dir.path()).expect("it was just made");
        let postgres = port();
        let connstr = format!("postgresql://{ADMIN}@127.0.0.1:{postgres}/postgres");
        let (external, internal) = (port(), port());
        Place { path, _dir: dir, cache: Some(cache()), external, internal, postgres, connstr }
    }

    /// The same without a template of `initdb` at hand.
    pub(crate) fn without_template() -> Self {
        let mut place = Place::new();
        place.cache = None;
        place
    }

    /// Where everything of this place is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn pgdata(&self) -> PathBuf {
        self.path.join("pgdata")
    }

    /// Where templates are: shared with other tests, or below this place.
    pub(crate) fn cache(&self) -> PathBuf {
        self.cache.as_ref().map_or_else(|| self.path.join("cache"), |shared| shared.path().to_owned())
    }

    pub(crate) fn config_file(&self) -> PathBuf {
        self.path.join("config.json")
    }

    /// A spec for a fresh cluster without roles and databases; `storage.kind` is `initdb`.
    pub(crate) fn spec(&self) -> Value {
        json!({
            "format_version": 1.0,
            "suspend_timeout_seconds": -1,
            "storage": { "kind": "initdb" },
            "cluster": {
                "roles": [],
                "databases": [],
                "settings": [
                    { "name": "port", "value": self.postgres.to_string(), "vartype": "integer" },
                    { "name": "listen_addresses", "value": "127.0.0.1", "vartype": "string" },
                    { "name": "unix_socket_directories", "value": self.path, "vartype": "string" },
                    { "name": "shared_buffers", "value": "16MB", "vartype": "string" },
                    { "name": "fsync", "value": "off", "vartype": "bool" },
                ],
            },
        })
    }

    /// The same that keeps its data.
    pub(crate) fn kept_spec(&self) -> Value {
        let mut spec = self.spec();
        spec["storage"]["kind"] = json!("existing");
        spec
    }

    /// Writes the config file.
    pub(crate) fn configure(&self, spec: &Value) {
        fs::write(self.config_file(), config(spec).to_string()).expect("writing into an own directory");
        pg::give(&self.config_file());
    }

    /// A file in this place that may be run.
    pub(crate) fn script(&self, name: &str, body: &str) -> PathBuf {
        let path = self.path.join(name);
        fs::create_dir_all(path.parent().expect("a file in a directory")).expect("an own directory");
        // Written by another process: a file that this one had open for writing cannot be run while a fork of
        // another thread still holds it.
        let write = r#"printf '#!/bin/sh\n%s\n' "$1" > "$2"; chmod 755 "$2""#;
        let done = Command::new("sh").args(["-c", write, "sh", body]).arg(&path).status();
        assert!(done.expect("there is a shell").success());
        path
    }

    /// The arguments every node of this place is started with.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let text = |path: PathBuf| path.to_str().expect("plain names").to_owned();
        let pairs = [
            ("--pgdata", text(self.pgdata())),
            ("--connstr", self.connstr.clone()),
            ("--config", text(self.config_file())),
            ("--compute-id", COMPUTE_ID.to_owned()),
            ("--external-http-port", self.external.to_string()),
            ("--internal-http-port", self.internal.to_string()),
            ("--cache-dir", text(self.cache())),
            ("--journal", text(self.journal())),
        ];
        pairs.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect()
    }

    pub(crate) fn journal(&self) -> PathBuf {
        self.path.join("journal")
    }

    /// The program without arguments, such that it and its children are recognised as this place's.
    pub(crate) fn program(&self) -> Command {
        self.wrapped(&[])
    }

    /// The program run by another one, which takes it as its last arguments.
    pub(crate) fn wrapped(&self, by: &[&str]) -> Command {
        let mut words: Vec<&str> = by.to_vec();
        words.push(env!("CARGO_BIN_EXE_compute_ctl"));
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).env("COMPUTE_CTL_TEST", &self.path).env("TMPDIR", &self.path);
        command.env_remove("RUST_LOG").stdin(Stdio::null());
        command
    }

    /// Starts a node on the config file.
    pub(crate) fn start(&self, more: &[&str]) -> Node<'_> {
        let mut command = self.program();
        command.args(self.arguments()).args(more);
        self.run(command)
    }

    /// Starts any command line as a node of this place.
    pub(crate) fn run(&self, mut command: Command) -> Node<'_> {
        let log = (0..).map(|number| self.path.join(format!("log-{number}"))).find(|path| !path.exists());
        let log = log.expect("there are enough numbers");
        let file = File::create(&log).expect("writing into an own directory");
        let out = log.with_extension("out");
        let stdout = File::create(&out).expect("writing into an own directory");
        command.stdout(stdout).stderr(file).process_group(0);
        let child = command.spawn().expect("it can be started");
        let pid = i32::try_from(child.id()).expect("a process id");
        Node { place: self, child: Mutex::new(child), pid, log, out, token: Some(token(COMPUTE_ID)) }
    }

    /// The same with something to write to its standard input.
    pub(crate) fn run_with_input(&self, mut command: Command) -> (Node<'_>, ChildStdin) {
        command.stdin(Stdio::piped());
        let node = self.run(command);
        let input = node.child().stdin.take().expect("piped above");
        (node, input)
    }

    /// All living processes of this place.
    pub(crate) fn processes(&self) -> Vec<Process> {
        processes::of(&self.path)
    }

    /// Runs SQL as the superuser.
    pub(crate) fn sql(&self, sql: &str) -> String {
        self.try_sql("postgres", sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// Runs SQL as the superuser in a database.
    pub(crate) fn try_sql(&self, database: &str, sql: &str) -> Result<String, String> {
        let output = self.psql(database).args(["-c", sql]).output().expect("psql runs");
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
            false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        }
    }

    fn psql(&self, database: &str) -> Command {
        let mut psql = pg::command("psql");
        psql.args(["-XwtAq", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-U", ADMIN, "-d", database]);
        psql.args(["-p", &self.postgres.to_string()]).env("PGCONNECT_TIMEOUT", "10");
        psql
    }

    /// A session that has run `sql` and stays open.
    pub(crate) fn session(&self, sql: &str) -> Session {
        self.session_in("postgres", sql)
    }

    /// The same in a database.
    pub(crate) fn session_in(&self, database: &str, sql: &str) -> Session {
        self.try_session(database, sql).unwrap_or_else(|| panic!("psql ended: {sql}"))
    }

    /// The same, if the server takes it.
    pub(crate) fn try_session(&self, database: &str, sql: &str) -> Option<Session> {
        const MARK: &str = "backend|";
        let mut psql = self.psql(database);
        psql.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = psql.spawn().expect("psql runs");
        let input = child.stdin.as_mut().expect("piped above");
        writeln!(input, "{sql};\nselect 'backend', pg_backend_pid();").expect("psql reads");
        let lines = BufReader::new(child.stdout.take().expect("piped above")).lines();
        let backend = lines.map_while(Result::ok).find_map(|line| line.strip_prefix(MARK)?.parse().ok());
        let Some(backend) = backend else {
            child.wait().expect("it is our child");
            return None;
        };
        // It will be signalled, so better look whom.
        let server = Process::of(backend).expect("the session is open");
        assert_eq!(server.name, "postgres");
        Some(Session { child, backend: server })
    }

    /// Logs in with a password that the server really asks for: connections from 127.0.0.1 are trusted, so this
    /// one comes from another loopback address.
    pub(crate) fn log_in(&self, role: &str, password: &str, database: &str) -> Result<String, String> {
        let mut config = tokio_postgres::Config::new();
        config.user(role).password(password).dbname(database);
        let server = (Ipv4Addr::LOCALHOST, self.postgres).into();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let text = |error: tokio_postgres::Error| {
            error.as_db_error().map_or_else(|| error.to_string(), ToString::to_string)
        };
        runtime.block_on(async {
            let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
            socket.bind((Ipv4Addr::new(127, 0, 0, 2), 0).into()).expect("all of 127/8 is loopback");
            let stream = socket.connect(server).await.map_err(|error| error.to_string())?;
            let (client, connection) =
                config.connect_raw(stream, tokio_postgres::NoTls).await.map_err(text)?;
            let driver = tokio::spawn(connection);
            let row = client.query_one("select current_user::text", &[]).await.map_err(text)?;
            drop(client);
            driver.await.expect("the connection ends with its client").map_err(text)?;
            Ok(row.get(0))
        })
    }

    /// What `pg_controldata` says of the cluster's state.
    pub(crate) fn cluster_state(&self) -> String {
        let output = pg::command("pg_controldata").arg(self.pgdata()).output().expect("it runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = text.lines().find_map(|line| line.strip_prefix("Database cluster state:"));
        line.unwrap_or_else(|| panic!("no state in {text}")).trim().to_owned()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Only after a failure is there anything left. Each is this test's, by its directory.
        for process in self.processes() {
            process.signal(Signal::SIGKILL);
        }
    }
}

/// The config document around a spec.
pub(crate) fn config(spec: &Value) -> Value {
    let key = json!({ "kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "x": PUBLIC_KEY });
    json!({ "spec": spec, "compute_ctl_config": { "jwks": { "keys": [key] } } })
}

/// A session with its own server process.
pub(crate) struct Session {
    child: Child,
    /// The process that serves it.
    pub(crate) backend: Process,
}

impl Session {
    /// Gives it more to do, without waiting.
    pub(crate) fn go_on(&mut self, sql: &str) {
        writeln!(self.child.stdin.as_mut().expect("piped when it was made"), "{sql};").expect("psql reads");
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A running program.
pub(crate) struct Node<'a> {
    place: &'a Place,
    child: Mutex<Child>,
    /// Of the process that was started, which may be a wrapper of the program.
    pub(crate) pid: i32,
    log: PathBuf,
    out: PathBuf,
    /// What requests carry; none for a server that wants none.
    pub(crate) token: Option<String>,
}

impl Node<'_> {
    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it has logged, its Postgres's log included.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// What it has written to standard output.
    pub(crate) fn out(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.out).unwrap_or_default()).into_owned()
    }

    /// Looks until there is something to see; fails with the log, also when the program has ended.
    pub(crate) fn wait<T>(&self, what: &str, mut look: impl FnMut(&Self) -> Option<T>) -> T {
        let end = Instant::now() + DEADLINE;
        let mut pause = Duration::from_millis(2);
        loop {
            let ended = self.child().try_wait().expect("it is our child");
            if let Some(seen) = look(self) {
                return seen;
            }
            assert!(ended.is_none(), "{what}: the program ended, {ended:?}\n{}", self.log());
            assert!(Instant::now() < end, "never happened: {what}\n{}", self.log());
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// Waits for a text in the log.
    pub(crate) fn wait_log(&self, text: &str) {
        self.wait(&format!("{text:?} in the log"), |node| node.log().contains(text).then_some(()));
    }

    /// The body of `GET /status`; `None` while nobody answers, or there is nothing to tell of yet.
    pub(crate) fn status(&self) -> Option<Value> {
        let (code, body) = self.request("GET", "/status", None).ok()?;
        if code == 503 && body.contains("only starting") {
            return None;
        }
        assert_eq!(code, 200, "{body}");
        Some(serde_json::from_str(&body).expect("the status is JSON"))
    }

    /// Waits for a status and returns the body.
    pub(crate) fn wait_status(&self, wanted: &str) -> Value {
        self.wait(&format!("status {wanted}"), |node| node.status().filter(|body| body["status"] == wanted))
    }

    pub(crate) fn request(&self, method: &str, path: &str, body: Option<&str>) -> io::Result<(u16, String)> {
        http(self.place.external, method, path, self.token.as_deref(), body)
    }

    /// A request that must be answered.
    pub(crate) fn post(&self, path: &str, body: Option<&Value>) -> (u16, String) {
        let body = body.map(ToString::to_string);
        self.request("POST", path, body.as_deref())
            .unwrap_or_else(|error| panic!("POST {path}: {error}\n{}", self.log()))
    }

    /// The same in the background.
    pub(crate) fn post_later(&self, path: &str, body: Option<&Value>) -> JoinHandle<(u16, String)> {
        let (port, token, path) = (self.place.external, self.token.clone(), path.to_owned());
        let body = body.map(ToString::to_string);
        std::thread::spawn(move || {
            http(port, "POST", &path, token.as_deref(), body.as_deref()).expect("it is answered")
        })
    }

    /// `POST /configure` with a spec.
    pub(crate) fn configure(&self, spec: &Value) -> (u16, Value) {
        let (code, body) = self.post("/configure", Some(&config(spec)));
        (code, serde_json::from_str(&body).unwrap_or(Value::String(body)))
    }

    /// `POST /refresh_configuration`, on the internal server.
    pub(crate) fn refresh(&self) -> u16 {
        http(self.place.internal, "POST", "/refresh_configuration", None, None).expect("it is answered").0
    }

    /// Signals the program, or what runs it.
    pub(crate) fn signal(&self, signal: Signal) {
        let mut child = self.child();
        let ended = child.try_wait().expect("it is our child");
        assert!(ended.is_none(), "it has ended, {ended:?}\n{}", self.log());
        kill(Pid::from_raw(self.pid), signal).expect("an own child that was not reaped");
    }

    /// The postmaster's process id, once it has written it down.
    pub(crate) fn postmaster(&self) -> i32 {
        self.wait("a postmaster", |node| {
            let text = fs::read_to_string(node.place.pgdata().join("postmaster.pid")).ok()?;
            text.lines().next()?.parse().ok()
        })
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.child().try_wait().expect("it is our child").is_some()
    }

    /// Waits for the end; its code.
    pub(crate) fn exit_code(&self) -> i32 {
        let status = self.wait("the program's end", |node| node.child().try_wait().expect("our child"));
        status.code().unwrap_or_else(|| panic!("it ended by a signal: {status}\n{}", self.log()))
    }

    /// Waits for the end by a signal; which.
    pub(crate) fn killed_by(&self) -> Option<i32> {
        self.wait("the program's end", |node| node.child().try_wait().expect("our child")).signal()
    }

    /// Waits for the end, which must have this code, and makes sure that nothing is left: no process of those
    /// there were, no member of their groups, no process that has anything to do with the place.
    pub(crate) fn ends_with(&self, code: i32, before: &[Process]) {
        assert_eq!(self.exit_code(), code, "{}", self.log());
        self.nothing_left(before);
    }

    pub(crate) fn nothing_left(&self, before: &[Process]) {
        let left = self.place.processes();
        assert!(left.is_empty(), "left behind: {left:?}\n{}", self.log());
        let alive: Vec<&Process> = before.iter().filter(|process| process.exists()).collect();
        assert!(alive.is_empty(), "still there: {alive:?}\n{}", self.log());
        let groups: BTreeSet<i32> = before.iter().map(|process| process.group).collect();
        let members: Vec<Process> =
            processes::all().into_iter().filter(|process| groups.contains(&process.group)).collect();
        assert!(members.is_empty(), "of the same groups: {members:?}\n{}", self.log());
    }

    /// Asks for an immediate termination, which must succeed and leave nothing.
    pub(crate) fn terminate(&self) {
        let before = self.place.processes();
        let (code, body) = self.post("/terminate?mode=immediate", None);
        assert_eq!((code, body.as_str()), (200, r#"{"lsn":null}"#), "{}", self.log());
        self.ends_with(0, &before);
    }

    /// Waits until its log, which is written a little later than requests are answered, tells of these statuses.
    pub(crate) fn went(&self, statuses: &[&str]) {
        self.wait("all changes of the status in the log", |node| {
            let told = node.transitions();
            assert!(told.len() <= statuses.len(), "{told:?}");
            (told == statuses).then_some(())
        });
    }

    /// The statuses it went through according to its log, the first one left out.
    pub(crate) fn transitions(&self) -> Vec<String> {
        let log = self.log();
        let lines = log.lines().filter(|line| line.contains(" transition from="));
        let to = lines.filter_map(|line| line.split(" to=").nth(1)?.split(' ').next());
        to.map(str::to_owned).collect()
    }
}

impl Drop for Node<'_> {
    fn drop(&mut self) {
        let mut child = self.child();
        if !matches!(child.try_wait(), Ok(Some(_))) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// One request over a connection of its own: code and body.
pub(crate) fn http(
    port: u16,
    method: &str,
    path: &str,
    token: Option<&str>,
    body: Option<&str>,
) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(DEADLINE))?;
    let authorization = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    let body = body.unwrap_or_default();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{authorization}\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    Ok((code.ok_or(io::ErrorKind::InvalidData)?, body.to_owned()))
}
