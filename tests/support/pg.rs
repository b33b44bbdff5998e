//! A throw-away PostgreSQL server: own directory, own free port, gone at drop.
//!
//! Works as an ordinary user and as root, where the server's processes run as the user `postgres`, because
//! PostgreSQL refuses root. A missing installation is a failure.

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::net::TcpListener;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread::JoinHandle;
use std::time::Duration;

use compute_ctl::secret::Secret;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, geteuid};
use tempfile::TempDir;

/// How long a server may take to start before the test fails.
const START: Duration = Duration::from_secs(60);

/// The superuser of test servers, the one Neon's specs assume.
pub(crate) const ADMIN: &str = "cloud_admin";

/// A running server.
pub(crate) struct Server {
    child: Child,
    log: Option<JoinHandle<()>>,
    port: u16,
    dir: TempDir,
}

impl Server {
    /// A fresh cluster with these lines at the end of its configuration. Trust on the socket, passwords over
    /// TCP.
    pub(crate) fn start(conf: &str) -> Self {
        let (dir, port) = Self::prepare(conf);
        Self::run(dir, port)
    }

    /// The same with its log in a file, for [`Log`].
    pub(crate) fn start_with_log(conf: &str) -> Self {
        let log = "logging_collector = on\nlog_destination = 'jsonlog'\nlog_filename = 'server.log'\n\
                   log_rotation_age = 0\nlog_rotation_size = 0";
        let (dir, port) = Self::prepare(&format!("{log}\n{conf}"));
        // The collector takes the server's words away from us, so that only its lock file says when it is ready.
        let data = dir.path().join("data");
        let changes = Inotify::init(InitFlags::IN_CLOEXEC).expect("inotify");
        let what = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MODIFY;
        changes.add_watch(&data, what).expect("the directory can be watched");
        let (child, log, _) = launch(dir.path());
        let server = Self { child, log: Some(log), port, dir };
        let (ready, is_ready) = mpsc::channel();
        std::thread::spawn(move || {
            let status = || fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
            while status().lines().last().is_none_or(|line| line.trim() != "ready") {
                changes.read_events().expect("a watched directory");
            }
            // Nobody is interested any more when the test has failed.
            let _ = ready.send(());
        });
        is_ready.recv_timeout(START).expect("the server starts in time");
        server
    }

    fn prepare(conf: &str) -> (TempDir, u16) {
        let dir = TempDir::with_prefix("compute_ctl-test-").expect("a temporary directory");
        give(dir.path());
        let data = dir.path().join("data");
        let mut initdb = command("initdb");
        initdb.args(["-U", ADMIN, "-E", "utf8", "--locale", "C.UTF-8", "--no-sync", "--no-instructions"]);
        // Small files: a cluster is made for each test, and copied by some.
        initdb.arg("--wal-segsize=1");
        let output = initdb.arg("-D").arg(&data).args(["--auth-host", "md5"]).output().expect("initdb runs");
        assert!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
        let port = free_port();
        let path = data.join("postgresql.conf");
        let mut text = fs::read_to_string(&path).expect("initdb has written it");
        text.push_str(&format!(
            "\nport = {port}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = '{}'\nfsync = off\n\
             shared_buffers = 16MB\nlc_messages = 'C'\n{conf}\n",
            dir.path().display()
        ));
        fs::write(&path, text).expect("writing into an own directory");
        (dir, port)
    }

    /// A hot standby that follows this server, with everything that was committed before.
    pub(crate) fn standby(&self) -> Self {
        let dir = TempDir::with_prefix("compute_ctl-test-").expect("a temporary directory");
        give(dir.path());
        let data = dir.path().join("data");
        let mut backup = command("pg_basebackup");
        backup.args(["-U", ADMIN, "-R", "--checkpoint=fast", "--no-sync", "-p", &self.port.to_string()]);
        let output = backup.arg("-h").arg(self.dir.path()).arg("-D").arg(&data).output().expect("it runs");
        assert!(output.status.success(), "pg_basebackup: {}", String::from_utf8_lossy(&output.stderr));
        let port = free_port();
        // The last line of a setting counts, and this file comes last.
        let conf = format!("\nport = {port}\nunix_socket_directories = '{}'\n", dir.path().display());
        let path = data.join("postgresql.auto.conf");
        let text = fs::read_to_string(&path).expect("pg_basebackup has written it");
        fs::write(&path, text + &conf).expect("writing into an own directory");
        Self::run(dir, port)
    }

    /// A server on a copy of this one's data. This one has been stopped.
    pub(crate) fn copy(&self) -> Self {
        let dir = TempDir::with_prefix("compute_ctl-test-").expect("a temporary directory");
        give(dir.path());
        let port = free_port();
        self.lay_out(dir.path(), port);
        Self::run(dir, port)
    }

    /// Ends a copy and starts it anew on a fresh copy.
    pub(crate) fn copy_to(&self, copy: &mut Self) {
        if matches!(copy.child.try_wait(), Ok(None)) {
            kill(copy.pid(), Signal::SIGQUIT).expect("an own child that was not reaped");
        }
        copy.ended();
        self.lay_out(copy.dir.path(), copy.port);
        copy.again();
    }

    fn lay_out(&self, dir: &Path, port: u16) {
        let data = dir.join("data");
        restore(&self.data(), &data);
        let conf = format!(
            "\nport = {port}\nlisten_addresses = ''\nunix_socket_directories = '{}'\n",
            dir.display()
        );
        // The last line that sets something counts.
        let mut file = OpenOptions::new().append(true).open(data.join("postgresql.conf")).expect("copied");
        file.write_all(conf.as_bytes()).expect("writing into an own directory");
    }

    fn run(dir: TempDir, port: u16) -> Self {
        let (child, log, is_ready) = launch(dir.path());
        let server = Self { child, log: Some(log), port, dir };
        ready(&is_ready);
        server
    }

    /// Stops it in order; its directory stays.
    pub(crate) fn stop(&mut self) {
        kill(self.pid(), Signal::SIGINT).expect("an own child that was not reaped");
        assert!(self.ended().success(), "a fast shutdown succeeds");
    }

    /// Starts it again after its end.
    pub(crate) fn again(&mut self) {
        self.ended();
        let (child, log, is_ready) = launch(self.dir.path());
        (self.child, self.log) = (child, Some(log));
        ready(&is_ready);
    }

    /// Waits until the postmaster and all processes it had are gone: each of them holds the log.
    fn ended(&mut self) -> ExitStatus {
        let status = self.child.wait().expect("it is our child");
        if let Some(log) = self.log.take() {
            let _ = log.join();
        }
        status
    }

    /// The postmaster.
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a process id"))
    }

    /// The directory of its socket.
    pub(crate) fn socket_dir(&self) -> &Path {
        self.dir.path()
    }

    /// A connection string for the superuser over the socket.
    pub(crate) fn connstr(&self, database: &str) -> Secret {
        Secret::new(format!(
            "host='{}' port={} user={ADMIN} dbname='{}'",
            self.dir.path().display(),
            self.port,
            database.replace('\\', "\\\\").replace('\'', "\\'")
        ))
    }

    /// Port of the server, on 127.0.0.1 and as part of the socket's name.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Its data directory.
    pub(crate) fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // Immediate shutdown: the data is not needed any more. Not reaped yet, so the number is its.
            let _ = kill(self.pid(), Signal::SIGQUIT);
        }
        self.ended();
    }
}

/// Starts a server on the cluster below a directory: the postmaster, the reader of its log, and what it says when
/// the server is ready, or has ended before: see [`ready`].
fn launch(dir: &Path) -> (Child, JoinHandle<()>, Receiver<String>) {
    let mut postgres = command("postgres");
    postgres.arg("-D").arg(dir.join("data")).stdin(Stdio::null()).stderr(Stdio::piped());
    let mut child = postgres.spawn().expect("postgres runs");
    let stderr = BufReader::new(child.stderr.take().expect("piped above"));
    let (ready, is_ready) = mpsc::channel();
    // Reads on until the server is gone, so that it never blocks on its log.
    let log = std::thread::spawn(move || {
        let mut seen = String::new();
        let mut ready = Some(ready);
        for line in stderr.split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).into_owned();
            // A standby adds a word.
            if line.contains("database system is ready to accept ") {
                ready.take().map(|ready| ready.send(String::new()));
            } else if ready.is_some() {
                seen.push_str(&line);
                seen.push('\n');
            }
        }
        ready.take().map(|ready| ready.send(seen));
    });
    (child, log, is_ready)
}

fn ready(is_ready: &Receiver<String>) {
    let failure = is_ready.recv_timeout(START).expect("the server starts in time");
    assert!(failure.is_empty(), "the server did not start:\n{failure}");
}

/// Makes a data directory what another one is. No server is using either. Only files that are not the same already
/// are written: most of a cluster stays as it is, and there are tests which do this often.
pub(crate) fn restore(from: &Path, to: &Path) {
    // Not through a link into what is somebody else's.
    if fs::symlink_metadata(to).is_ok_and(|there| !there.is_dir()) {
        fs::remove_file(to).expect("an own file");
    }
    if !to.exists() {
        fs::create_dir(to).expect("an own directory");
        give(to);
    }
    fs::set_permissions(to, fs::metadata(from).expect("it is there").permissions())
        .expect("an own directory");
    for entry in fs::read_dir(to).expect("an own directory").map(Result::unwrap) {
        if from.join(entry.file_name()).exists() {
            continue;
        }
        match entry.file_type().expect("it is there").is_dir() {
            true => fs::remove_dir_all(entry.path()).expect("an own directory"),
            false => fs::remove_file(entry.path()).expect("an own file"),
        }
    }
    for entry in fs::read_dir(from).expect("an own directory").map(Result::unwrap) {
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let wanted = entry.metadata().expect("it is there");
        if wanted.is_dir() {
            restore(&source, &target);
            continue;
        }
        let time = wanted.modified().expect("files have times");
        let same =
            |there: fs::Metadata| there.len() == wanted.len() && there.modified().is_ok_and(|at| at == time);
        if !fs::metadata(&target).is_ok_and(same) {
            fs::copy(&source, &target).expect("an own file");
            give(&target);
            let file = OpenOptions::new().write(true).open(&target).expect("an own file");
            file.set_modified(time).expect("an own file");
        }
    }
}

/// One message in a server's log.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) pid: i64,
    pub(crate) database: String,
    pub(crate) application: String,
    pub(crate) message: String,
}

/// The log of a server that was started by [`Server::start_with_log`], read piece by piece.
pub(crate) struct Log {
    path: PathBuf,
    changes: Inotify,
    read: u64,
}

impl Log {
    pub(crate) fn of(server: &Server) -> Self {
        let directory = server.data().join("log");
        let changes = Inotify::init(InitFlags::IN_CLOEXEC).expect("inotify");
        changes.add_watch(&directory, AddWatchFlags::IN_MODIFY).expect("the directory can be watched");
        Self { path: directory.join("server.json"), changes, read: 0 }
    }

    /// What was logged since the last call, up to the first message with this text in it. The caller has had the
    /// server log it.
    pub(crate) fn until(&mut self, text: &str) -> Vec<Entry> {
        let mut entries = Vec::new();
        loop {
            let mut file = fs::File::open(&self.path).expect("the server's log");
            file.seek(SeekFrom::Start(self.read)).expect("seeking in a file");
            let mut piece = Vec::new();
            file.read_to_end(&mut piece).expect("the log can be read");
            for line in piece.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n")) {
                self.read += line.len() as u64;
                let value: serde_json::Value = serde_json::from_slice(line).expect("a log of JSON");
                let field = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
                let entry = Entry {
                    pid: value["pid"].as_i64().unwrap_or_default(),
                    database: field("dbname"),
                    application: field("application_name"),
                    message: field("message"),
                };
                if entry.message.contains(text) {
                    return entries;
                }
                entries.push(entry);
            }
            self.changes.read_events().expect("a watched directory");
        }
    }
}

/// A program of the newest installation, as a user PostgreSQL accepts.
pub(crate) fn command(program: &str) -> Command {
    let mut command = Command::new(self::program(program));
    command.current_dir("/").env("LC_ALL", "C").env("TZ", "UTC");
    if let Some(user) = unprivileged() {
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    command
}

/// Where a program of the newest installation is.
pub(crate) fn program(name: &str) -> PathBuf {
    bin().join(name)
}

/// Makes a file or directory accessible to [`command`].
pub(crate) fn give(path: &Path) {
    if let Some(user) = unprivileged() {
        chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).expect("root may give away");
    }
}

fn unprivileged() -> Option<User> {
    geteuid().is_root().then(|| {
        User::from_name("postgres").expect("the user database is readable").expect("the user postgres exists")
    })
}

fn bin() -> PathBuf {
    let version = |path: &PathBuf| path.parent()?.file_name()?.to_str()?.parse::<u32>().ok();
    let installed = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> =
        installed.map(|entry| entry.path().join("bin")).filter(|bin| bin.join("postgres").exists()).collect();
    found.sort_by_key(version);
    let path = std::env::var_os("PATH").unwrap_or_default();
    found
        .pop()
        .or_else(|| std::env::split_paths(&path).find(|dir| dir.join("postgres").exists()))
        .expect("PostgreSQL is installed in /usr/lib/postgresql or in PATH")
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("a bound socket has an address").port()
}
