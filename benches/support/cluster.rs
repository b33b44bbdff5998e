//! A cluster that each measurement gets a fresh copy of, and the two that serve it: Postgres alone, and supervised.

#![allow(dead_code, reason = "each benchmark uses its own part")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// Whom the keys of a node let in.
const COMPUTE_ID: &str = "bench";

/// How long anything here may take before the benchmark gives up.
const PATIENCE: Duration = Duration::from_secs(60);

/// Pause between two looks. Both sides of each pair are looked at alike.
const LOOK: Duration = Duration::from_micros(500);

/// The template of a cluster, and ports to serve copies of it on.
pub(crate) struct Cluster {
    root: tempfile::TempDir,
    bin: PathBuf,
    ports: [u16; 3],
}

impl Cluster {
    /// A new cluster.
    pub(crate) fn new() -> Self {
        let root = tempfile::tempdir().expect("a directory for temporary files");
        let bin = bin_dir();
        let ports = [free_port(), free_port(), free_port()];
        let cluster = Self { root, bin, ports };
        let initdb = Command::new(cluster.bin.join("initdb"))
            .args(["--username=cloud_admin", "--encoding=utf8", "--locale=C.UTF-8", "--auth=trust", "-D"])
            .arg(cluster.template())
            .stdout(Stdio::null())
            .status()
            .expect("initdb starts");
        assert!(initdb.success(), "initdb failed");
        cluster
    }

    /// What the server calls itself.
    pub(crate) fn version(&self) -> String {
        let output =
            Command::new(self.bin.join("postgres")).arg("--version").output().expect("postgres starts");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    fn template(&self) -> PathBuf {
        self.root.path().join("template")
    }

    /// A fresh copy of the same cluster, with the settings both sides use.
    pub(crate) fn data(&self) -> PathBuf {
        let data = self.data_dir();
        if data.exists() {
            fs::remove_dir_all(&data).expect("the old copy can be removed");
        }
        let copied =
            Command::new("cp").args(["-a", "--reflink=auto"]).arg(self.template()).arg(&data).status();
        assert!(copied.expect("cp starts").success(), "cp failed");
        let text = format!(
            "port={}\nlisten_addresses='127.0.0.1'\nunix_socket_directories=''\nlc_messages='C.UTF-8'\n",
            self.port()
        );
        fs::write(data.join("postgresql.conf"), text).expect("the settings can be written");
        data
    }

    /// Writes the config document with this list of roles and of databases.
    pub(crate) fn config(&self, roles: &[Value], databases: &[Value], skip_catalog: bool) -> PathBuf {
        let port = self.port().to_string();
        let document = json!({
            "spec": {
                "format_version": 1.0,
                "suspend_timeout_seconds": -1,
                "storage": { "kind": "existing" },
                "skip_pg_catalog_updates": skip_catalog,
                "cluster": {
                    "roles": roles,
                    "databases": databases,
                    "settings": [
                        { "name": "port", "value": port, "vartype": "integer" },
                        { "name": "listen_addresses", "value": "127.0.0.1", "vartype": "string" },
                        { "name": "unix_socket_directories", "value": "", "vartype": "string" },
                    ],
                },
            },
            "compute_ctl_config": { "jwks": keys() },
        });
        let path = self.root.path().join("config.json");
        fs::write(&path, document.to_string()).expect("the config can be written");
        path
    }

    /// Where whichever server is running listens.
    pub(crate) fn port(&self) -> u16 {
        self.ports[0]
    }

    /// Where the program's external server listens.
    pub(crate) fn http_port(&self) -> u16 {
        self.ports[1]
    }

    /// Where the copy is that was made last.
    pub(crate) fn data_dir(&self) -> PathBuf {
        self.root.path().join("data")
    }

    pub(crate) fn bare(&self, data: &Path) -> Process {
        let mut command = Command::new(self.bin.join("postgres"));
        command.arg("-D").arg(data);
        Process::spawn(command)
    }

    pub(crate) fn supervised(&self, data: &Path, config: &Path) -> Process {
        let mut command = Command::new(env!("CARGO_BIN_EXE_compute_ctl"));
        command.args(["run", "-i", COMPUTE_ID, "-D"]).arg(data).arg("-c").arg(config);
        command.arg("-C").arg(connstr(self.port())).arg("-b").arg(self.bin.join("postgres"));
        command.arg("--cache-dir").arg(self.root.path().join("cache"));
        command.arg("--journal").arg(self.root.path().join("journal"));
        command.arg("--external-http-port").arg(self.ports[1].to_string());
        command.arg("--internal-http-port").arg(self.ports[2].to_string());
        Process::spawn(command)
    }

    /// Until the first `SELECT 1` has its answer.
    pub(crate) fn answers(&self) {
        until("Postgres answers", || self.query("SELECT 1"));
    }

    /// Whether the server executes this statement, in a session of its own.
    pub(crate) fn query(&self, sql: &str) -> bool {
        query(self.port(), sql)
    }

    /// What the program answers, head and body.
    pub(crate) fn http(&self, method: &str, path: &str, body: &str) -> Option<String> {
        http(self.ports[1], method, path, body)
    }
}

/// A process whose end is waited for.
pub(crate) struct Process {
    child: Child,
    log: Receiver<String>,
}

impl Process {
    fn spawn(mut command: Command) -> Self {
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        let stderr = child.stderr.take().expect("it is piped");
        let (lines, log) = mpsc::channel();
        // A pipe that nobody reads would stop the writer. Orphans of a killed Postgres keep it open a while.
        std::thread::spawn(move || {
            // Once nobody listens any more, the rest is still read.
            BufReader::new(stderr).lines().map_while(Result::ok).for_each(|line| drop(lines.send(line)));
        });
        Process { child, log }
    }

    /// What it has in memory, and the most it ever had, in kB.
    pub(crate) fn memory(&self) -> [u64; 2] {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        ["VmRSS:", "VmHWM:"].map(|name| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("Linux tells it");
            line.trim().trim_end_matches(" kB").parse().expect("a number of kB")
        })
    }

    /// Until it has logged this.
    pub(crate) fn says(&self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        let mut last = String::new();
        while !last.contains(text) {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = self.log.recv_timeout(left) else { panic!("not logged: {text}; but: {last}") };
            last = line;
        }
    }

    pub(crate) fn stop(&mut self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("pids are small");
        kill(Pid::from_raw(pid), signal).expect("it runs");
        self.wait();
    }

    pub(crate) fn wait(&mut self) {
        self.child.wait().expect("it is our child");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // After a failure in between; an ended child is no longer signalled.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < PATIENCE, "waited too long for: {what}");
        std::thread::sleep(LOOK);
    }
}

fn free_port() -> u16 {
    let socket = TcpListener::bind("127.0.0.1:0").expect("a free port");
    socket.local_addr().expect("it is bound").port()
}

fn bin_dir() -> PathBuf {
    let find = "ls -d $(dirname $(command -v postgres || echo /nowhere)) /usr/lib/postgresql/*/bin 2>/dev/null | tail -1";
    let output = Command::new("sh").args(["-c", find]).output().expect("sh starts");
    let path = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    assert!(path.join("postgres").exists(), "no PostgreSQL on this machine: see the README");
    path
}

/// How a superuser reaches what listens there.
pub(crate) fn connstr(port: u16) -> String {
    format!("postgresql://cloud_admin@127.0.0.1:{port}/postgres")
}

/// The wire protocol for one statement, without a runtime whose own start would be measured.
fn query(port: u16, sql: &str) -> bool {
    let exchange = || -> std::io::Result<bool> {
        let mut socket = TcpStream::connect(("127.0.0.1", port))?;
        let mut parameters = b"\0\x03\0\0user\0cloud_admin\0database\0postgres\0\0".to_vec();
        let mut startup = u32::to_be_bytes(parameters.len() as u32 + 4).to_vec();
        startup.append(&mut parameters);
        socket.write_all(&startup)?;
        if !ready_for_query(&mut socket)? {
            return Ok(false);
        }
        let mut statement = vec![b'Q'];
        statement.extend(u32::to_be_bytes(sql.len() as u32 + 5));
        statement.extend(sql.as_bytes());
        statement.push(0);
        socket.write_all(&statement)?;
        let answered = ready_for_query(&mut socket)?;
        socket.write_all(b"X\0\0\0\x04")?;
        Ok(answered)
    };
    exchange().unwrap_or(false)
}

/// Reads messages until `ReadyForQuery` (true) or an error (false).
fn ready_for_query(socket: &mut TcpStream) -> std::io::Result<bool> {
    loop {
        let mut header = [0; 5];
        socket.read_exact(&mut header)?;
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
        let mut body = vec![0; length.saturating_sub(4)];
        socket.read_exact(&mut body)?;
        match header[0] {
            b'Z' => return Ok(true),
            b'E' => return Ok(false),
            _ => {}
        }
    }
}

/// The keys by which a node knows who may ask.
fn keys() -> Value {
    serde_json::from_str(include_str!("../../tests/fixtures/keys/jwks.json")).expect("a key set")
}

/// What a control plane sends along with each request.
pub(crate) fn token() -> &'static str {
    static TOKEN: LazyLock<String> = LazyLock::new(|| {
        let key = EncodingKey::from_ed_der(include_bytes!("../../tests/fixtures/keys/ed25519.der"));
        let claims = json!({ "compute_id": COMPUTE_ID });
        jsonwebtoken::encode(&Header::new(Algorithm::EdDSA), &claims, &key).expect("the key fits")
    });
    &TOKEN
}

fn http(port: u16, method: &str, path: &str, body: &str) -> Option<String> {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).ok()?;
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
         authorization: Bearer {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        token(),
        body.len()
    );
    socket.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer).ok()?;
    Some(answer)
}
