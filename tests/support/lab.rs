//! A laboratory for tests against the real PostgreSQL: directories, servers, sessions, and a view of the
//! process table that is independent of the code under test.
//!
//! PostgreSQL refuses to run as root. Test programs are run as an unprivileged user by `.ci/unprivileged`,
//! a runner of cargo's; without it, as root, these tests fail and say so.

use std::error::Error;
use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use compute_ctl::postgres::{DataDir, Fact, Installation, Launch, LogSink, Postmaster};
use compute_ctl::storage::{Context, Role, Storage};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// An error and all its causes.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

/// Longer than anything here takes on a loaded machine: a bound against hanging, not an expectation.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// A directory with everything one test needs in it.
pub(crate) struct Lab {
    pub(crate) dir: TempDir,
    cache: Arc<TempDir>,
    pub(crate) installation: Installation,
    pub(crate) log: Arc<Mutex<String>>,
}

/// Templates are made once for all tests that run at the same time.
static CACHE: Mutex<Weak<TempDir>> = Mutex::new(Weak::new());

impl Lab {
    pub(crate) async fn new() -> Self {
        assert!(
            !nix::unistd::geteuid().is_root(),
            "PostgreSQL refuses to run as root: run the tests through .ci/unprivileged (see there)"
        );
        compute_ctl::postgres::process::become_subreaper().unwrap();
        let installation = Installation::find(None, None).await.expect("these tests need PostgreSQL");
        let cache = {
            let mut shared = CACHE.lock().unwrap();
            shared.upgrade().unwrap_or_else(|| {
                let new = Arc::new(tempfile::tempdir().unwrap());
                *shared = Arc::downgrade(&new);
                new
            })
        };
        Self { dir: tempfile::tempdir().unwrap(), cache, installation, log: Arc::default() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Claims the directory of this name.
    pub(crate) fn claim(&self, name: &str) -> Arc<DataDir> {
        DataDir::claim(&self.path(name)).unwrap()
    }

    pub(crate) fn context(&self, pgdata: &Arc<DataDir>) -> Context {
        Context {
            installation: self.installation.clone(),
            pgdata: Arc::clone(pgdata),
            superuser: "cloud_admin".to_owned(),
            cache: self.cache.path().to_owned(),
            conf: "".into(),
            overwrite_foreign: false,
            restart: false,
            role: Role::Primary,
            progress: Arc::default(),
            cancel: CancellationToken::new(),
        }
    }

    /// A claimed directory with a fresh cluster.
    pub(crate) async fn cluster(&self, name: &str) -> Arc<DataDir> {
        let pgdata = self.claim(name);
        compute_ctl::storage::Initdb.prepare(&self.context(&pgdata)).await.unwrap();
        pgdata
    }

    /// Starts a server that listens on a socket in the laboratory only.
    pub(crate) fn spawn(&self, pgdata: &Arc<DataDir>) -> (Postmaster, mpsc::UnboundedReceiver<Fact>) {
        self.spawn_with(pgdata, &[])
    }

    pub(crate) fn spawn_with(
        &self,
        pgdata: &Arc<DataDir>,
        options: &[(&str, &str)],
    ) -> (Postmaster, mpsc::UnboundedReceiver<Fact>) {
        Postmaster::spawn(self.launch(pgdata, options)).unwrap()
    }

    pub(crate) fn launch(&self, pgdata: &Arc<DataDir>, options: &[(&str, &str)]) -> Launch {
        let own = [
            ("listen_addresses", ""),
            ("unix_socket_directories", self.dir.path().to_str().unwrap()),
            ("log_line_prefix", "%m [%p] "),
        ];
        let log = Arc::clone(&self.log);
        Launch {
            installation: self.installation.clone(),
            pgdata: Arc::clone(pgdata),
            options: own.iter().chain(options).map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            env: Vec::new(),
            log: LogSink::new(move |message| log.lock().unwrap().push_str(message)),
        }
    }

    /// A session of the superuser's.
    pub(crate) async fn connect(&self) -> tokio_postgres::Client {
        let (client, connection) = tokio_postgres::Config::new()
            .host_path(self.dir.path())
            .user("cloud_admin")
            .dbname("postgres")
            .connect(tokio_postgres::NoTls)
            .await
            .unwrap();
        tokio::spawn(connection);
        client
    }

    /// One line of `pg_controldata`.
    pub(crate) async fn control(&self, pgdata: &DataDir, line: &str) -> String {
        let mut command = std::process::Command::new(self.installation.tool("pg_controldata"));
        command.arg("-D").arg(pgdata.path()).env("LC_ALL", "C");
        let none = CancellationToken::new();
        let output = compute_ctl::postgres::process::run(command, &none, PATIENCE).await.unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(!text.contains("WARNING"), "{text}");
        let found = text.lines().find_map(|candidate| candidate.strip_prefix(line)).unwrap();
        found.trim_start_matches(':').trim().to_owned()
    }
}

/// The next fact that is not about progress.
pub(crate) async fn next(facts: &mut mpsc::UnboundedReceiver<Fact>) -> Option<Fact> {
    let step = async {
        loop {
            match facts.recv().await {
                Some(Fact::Progressed) => {}
                other => return other,
            }
        }
    };
    patiently(step).await
}

pub(crate) async fn patiently<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("this hangs")
}

/// Returns once the condition holds. Looks now and then, as looking takes time away from what is awaited.
pub(crate) async fn until(mut condition: impl FnMut() -> bool) {
    patiently(async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

/// Living processes that work in this directory or name it on their command line, this one excepted.
pub(crate) fn processes_about(path: &Path) -> Vec<(i32, String)> {
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap() {
        let Ok(pid) = entry.unwrap().file_name().to_string_lossy().parse::<i32>() else { continue };
        let read = |name: &str| fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
        let command = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
        let here = fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == path);
        if (here || command.contains(path.to_str().unwrap())) && pid != nix::unistd::getpid().as_raw() {
            found.push((pid, command));
        }
    }
    found
}

/// Children of this process, zombies included, whose name is this.
pub(crate) fn children_named(name: &str) -> Vec<String> {
    let me = nix::unistd::getpid().to_string();
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| fs::read_to_string(entry.unwrap().path().join("stat")).ok())
        .filter(|stat| stat.contains(&format!("({name})")))
        .filter(|stat| stat.rsplit(") ").next().unwrap().split(' ').nth(1) == Some(me.as_str()))
        .collect()
}

/// The names in a directory, sorted.
pub(crate) fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
