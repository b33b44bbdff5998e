//! Changes of the settings of a real server.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use compute_ctl::catalog::{self, ConnectionSettings, Profile};
use compute_ctl::postgres::conf;
use compute_ctl::postgres::settings::{
    Change, Changed, Judgement, Reload, Session, Settings, SettingsError, SizeLimitLifted,
};
use compute_ctl::telemetry::Metrics;
use nix::sys::signal::{Signal, kill};
use support::pg::Server;
use tokio_util::sync::CancellationToken;

/// A server, what was in its file at the start, and how often it was told to read it again.
struct Running {
    server: Server,
    base: String,
    settings: Settings,
    metrics: Arc<Metrics>,
    reloads: Arc<AtomicUsize>,
    reload: Reload,
}

impl Running {
    fn start(conf: &str) -> Self {
        let server = Server::start(conf);
        let base = fs::read_to_string(server.data().join("postgresql.conf")).unwrap();
        let metrics = Arc::new(Metrics::new());
        let reloads = Arc::new(AtomicUsize::new(0));
        let (told, postmaster) = (reloads.clone(), server.pid());
        let reload: Reload = Arc::new(move || {
            told.fetch_add(1, Ordering::Relaxed);
            kill(postmaster, Signal::SIGHUP).is_ok()
        });
        Running { server, base, settings: Settings::new(metrics.clone()), metrics, reloads, reload }
    }

    fn connect(&self) -> ConnectionSettings {
        ConnectionSettings::new(&self.server.connstr("postgres"), Profile::Standard).unwrap()
    }

    /// Changes the settings to those of the start and these lines.
    async fn change(&self, lines: &str) -> Result<Changed, SettingsError> {
        self.change_by(lines, &self.reload, &CancellationToken::new()).await
    }

    async fn change_by(
        &self,
        lines: &str,
        reload: &Reload,
        token: &CancellationToken,
    ) -> Result<Changed, SettingsError> {
        let text = format!("{}{lines}\n", self.base);
        let (server, data) = (self.connect(), self.server.data());
        let change = Change { pgdata: &data, text: &text, server: &server, reload };
        self.settings.change(change, token).await
    }

    /// What the server makes of the settings of the start and these lines; nothing is changed.
    async fn judge(&self, lines: &str) -> Judgement {
        let token = CancellationToken::new();
        let mut session = Session::open(&self.connect(), &token).await.unwrap();
        let before = self.file();
        conf::write(&self.server.data(), &format!("{}{lines}\n", self.base)).unwrap();
        let judgement = session.judge(&token).await.unwrap();
        conf::write(&self.server.data(), &before).unwrap();
        judgement
    }

    fn file(&self) -> String {
        fs::read_to_string(self.server.data().join("postgresql.conf")).unwrap()
    }

    fn reloads(&self) -> usize {
        self.reloads.load(Ordering::Relaxed)
    }

    /// In a new session.
    async fn show(&self, name: &str) -> Option<String> {
        let connection = catalog::connect(&self.connect()).await.unwrap();
        let query = "SELECT pg_catalog.current_setting($1, true)";
        connection.client().query_one(query, &[&name]).await.unwrap().get(0)
    }

    fn metric(&self, name: &str) -> Option<String> {
        let text = self.metrics.render(0).unwrap();
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned))
    }
}

/// Each kind of line that the server does not simply take, and what it says.
#[tokio::test]
async fn the_server_judges_a_file_before_it_is_told_to_read_it() {
    let node = Running::start("max_wal_senders = 7");
    for (lines, words) in [
        (
            "max_connections = abc",
            &["max_connections = 'abc'", "invalid value", "a whole number from 1 to 262143"][..],
        ),
        ("max_connections = 99999999", &["outside the valid range"]),
        (
            "work_mem = 1",
            &["work_mem = '1'", "outside the valid range", "from 64 to 2147483647, in units of kB"],
        ),
        ("work_mem = '4XB'", &["Valid units", "\"MB\""]),
        ("random_page_cost = x", &["a number from 0 to 1.79"]),
        ("wal_level = foo", &["wal_level = 'foo'", "one of minimal, replica, logical"]),
        ("log_min_messages = foo", &["one of debug5"]),
        ("fsync = 2", &["requires a Boolean value", "on or off"]),
        ("enable_seqscan = maybe", &["on or off"]),
        ("datestyle = 'foo'", &["Unrecognized key word"]),
        ("synchronous_standby_names = '('", &["syntax error at or near"]),
        ("temp_tablespaces = 'a b'", &["List syntax is invalid"]),
        ("no_such_setting = 1", &["no_such_setting (", "unrecognized configuration parameter", "prefix"]),
        ("block_size = 1024", &["cannot be changed", "not to set it"]),
        ("include 'absent.conf'", &["could not open file"]),
        ("include 'postgresql.conf'", &["recursion"]),
        ("work_mem = '4MB", &["a line (", "syntax error"]),
        ("role = 'nobody'", &["role (", "could not be applied"]),
        ("work_mem = '4MB'\nWork_Mem = 1", &["Work_Mem = '1'"]),
    ] {
        let judgement = node.judge(lines).await;
        let [refusal] = judgement.refused.as_slice() else { panic!("{lines:?}: {judgement:?}") };
        let text = refusal.to_string();
        for word in words {
            assert!(text.contains(word), "{lines:?}: {word:?} not in {text:?}");
        }
        let (file, line) = refusal.place.as_ref().unwrap();
        assert!(file.ends_with("/postgresql.conf"), "{file}");
        let last = node.base.lines().count() + lines.lines().count();
        assert_eq!(usize::try_from(*line).unwrap(), last, "{lines:?}");
        assert!(judgement.needs_restart.is_empty(), "{lines:?}: {judgement:?}");
    }
    for (lines, restart) in [
        ("max_connections = 50", &["max_connections"][..]),
        ("max_connections = abc\nmax_connections = 50", &["max_connections"]),
        ("shared_preload_libraries = 'absent'\nport = 1", &["port", "shared_preload_libraries"]),
        ("work_mem = 1\nwork_mem = '4MB'", &[]),
        ("max_connections = 50\nmax_connections = 100", &[]),
        ("extension.anything = 'goes'", &[]),
        ("default_text_search_config = 'of_another_database'", &[]),
        ("default_table_access_method = 'of_another_database'", &[]),
        ("include_if_exists 'absent.conf'", &[]),
    ] {
        let judgement = node.judge(lines).await;
        assert_eq!(judgement.refused, [], "{lines:?}");
        assert_eq!(judgement.needs_restart, restart, "{lines:?}");
        assert_eq!(judgement.unjudged.is_empty(), !lines.contains("of_another_database"), "{judgement:?}");
    }
    // A file of its own, and one that takes a setting away.
    fs::write(node.server.data().join("more.conf"), "\nwork_mem = 1\n").unwrap();
    let judgement = node.judge("include 'more.conf'").await;
    let (file, line) = judgement.refused[0].place.clone().unwrap();
    assert!(file.ends_with("/more.conf") && line == 2, "{judgement:?}");
    let without = Running { base: node.base.replace("max_wal_senders = 7", ""), ..node };
    let judgement = without.judge("").await;
    assert_eq!(
        (judgement.refused.len(), judgement.needs_restart.as_slice()),
        (0, &["max_wal_senders".to_owned()][..])
    );
    assert_eq!(without.reloads(), 0);
}

/// The mark of a change that waits for a restart is inherited by later sessions.
#[tokio::test]
async fn nonsense_after_a_change_that_waits_is_still_refused() {
    let node = Running::start("");
    let changed = node.change("max_connections = 50").await.unwrap();
    assert_eq!(changed.pending_restart, ["max_connections"]);
    let judgement = node.judge("max_connections = abc").await;
    assert_eq!((judgement.refused.len(), judgement.needs_restart.len()), (1, 0), "{judgement:?}");
    assert_eq!(node.judge("max_connections = 60").await.needs_restart, ["max_connections"]);
    // What waits does so until the file says again what is in force.
    let changed = node.change("max_connections = 50\nwork_mem = '5MB'").await.unwrap();
    assert_eq!(
        changed,
        Changed {
            settings: vec!["work_mem".to_owned()],
            pending_restart: vec!["max_connections".to_owned()]
        }
    );
    assert_eq!(node.metric("compute_ctl_pending_restart_settings").unwrap(), "1");
    assert_eq!(node.change("").await.unwrap().pending_restart, [""; 0]);
    assert_eq!(node.metric("compute_ctl_pending_restart_settings").unwrap(), "0");
}

#[tokio::test]
async fn a_change_is_in_force_when_it_is_reported() {
    let node = Running::start("work_mem = '3MB'");
    // Of a session, of the superuser, of the server; clamped, of an extension; known by an old name.
    let lines = "work_mem = '7MB'\nlog_statement = ddl\ncheckpoint_timeout = 7min\nautovacuum_work_mem = 1kB\n\
                 my.own = 'x'\nsearch_path = 'a'\nsort_mem = '9MB'\nlog_connections = on\nDateStyle = 'German'";
    let changed = node.change(lines).await.unwrap();
    assert_eq!(
        changed.settings,
        [
            "autovacuum_work_mem",
            "checkpoint_timeout",
            "datestyle",
            "log_connections",
            "log_statement",
            "my.own",
            "search_path",
            "work_mem"
        ]
    );
    assert_eq!(changed.pending_restart, [""; 0]);
    for (name, value) in
        [("work_mem", "9MB"), ("checkpoint_timeout", "7min"), ("my.own", "x"), ("log_connections", "on")]
    {
        assert_eq!(node.show(name).await.as_deref(), Some(value), "{name}");
    }
    assert_eq!(node.reloads(), 1);
    assert_eq!(node.metric("compute_ctl_settings_reloads_total{outcome=\"applied\"}").unwrap(), "1");

    // The same once more is nothing to do, not even when the server could not be reached.
    let nowhere =
        ConnectionSettings::new(&compute_ctl::secret::Secret::new("host=/nowhere user=x"), Profile::Standard);
    let (text, data) = (node.file(), node.server.data());
    let change = Change { pgdata: &data, text: &text, server: &nowhere.unwrap(), reload: &node.reload };
    let inode = || fs::metadata(data.join("postgresql.conf")).unwrap().ino();
    let written = inode();
    let nothing = node.settings.change(change, &CancellationToken::new()).await.unwrap();
    assert_eq!((nothing, inode()), (Changed::default(), written));
    // Nor when the line of the subscribers was added to it.
    conf::enable_subscribers(&data).unwrap();
    let subscribers = node.file();
    assert_ne!(subscribers, text);
    node.settings.change(change, &CancellationToken::new()).await.unwrap();
    assert_eq!((node.file(), node.reloads()), (subscribers, 1));
    conf::write(&data, &text).unwrap();

    // Something else is more than the text of before, and cannot be done without the server.
    let error = node
        .settings
        .change(Change { text: "work_mem = '1MB'\n", ..change }, &CancellationToken::new())
        .await;
    assert!(matches!(error, Err(SettingsError::Connect(_))), "{error:?}");
    assert_eq!((node.file(), node.reloads()), (text, 1));
    assert_eq!(node.metric("compute_ctl_settings_reloads_total{outcome=\"failed\"}").unwrap(), "1");

    let changed = node.change("work_mem = '7MB'").await.unwrap();
    assert!(changed.settings.contains(&"checkpoint_timeout".to_owned()), "{changed:?}");
    assert_eq!(node.show("checkpoint_timeout").await.unwrap(), "5min");
}

#[tokio::test]
async fn a_refused_change_leaves_everything_as_it_was() {
    let node = Running::start("work_mem = '3MB'");
    let token = "hunter2";
    let lines = format!(
        "work_mem = '7MB'\ncheckpoint_timeout = 1\nwal_level = foo\nmax_connections = 50\n\
         primary_conninfo = 'password={token}'\nprimary_slot_name = '{token}?'\nlog_statement = '{token}'"
    );
    let before = node.file();
    let error = node.change(&lines).await.unwrap_err();
    let text = error.to_string();
    for word in [
        "refuses 4 settings",
        "checkpoint_timeout = '1'",
        "wal_level = 'foo'",
        "primary_slot_name",
        "log_statement",
    ] {
        assert!(text.contains(word), "{word:?} not in {text}");
    }
    assert!(!text.contains("primary_conninfo") && !text.contains("max_connections"), "{text}");
    assert!(error.is_permanent());
    assert_eq!((node.file(), node.reloads()), (before, 0));
    assert_eq!(node.show("work_mem").await.unwrap(), "3MB");
    assert_eq!(node.settings.pending_restart(), [""; 0]);
    assert_eq!(node.metric("compute_ctl_settings_reloads_total{outcome=\"refused\"}").unwrap(), "1");
    assert!(node.change("work_mem = '8MB'").await.is_ok());
    assert_eq!(node.show("work_mem").await.unwrap(), "8MB");
}

/// A library to be loaded by each session is not looked for by the server itself.
#[tokio::test]
async fn settings_that_shut_everybody_out_are_taken_back() {
    let node = Running::start("work_mem = '3MB'");
    let before = node.file();
    let error = node.change("session_preload_libraries = 'absent'\nwork_mem = '7MB'").await.unwrap_err();
    assert!(matches!(error, SettingsError::ShutOut(_)), "{error:?}");
    assert_eq!((node.file(), node.reloads()), (before, 2));
    assert_eq!(node.show("work_mem").await.unwrap(), "3MB", "a session, with the old settings");
}

#[tokio::test]
async fn a_postmaster_that_was_not_told_or_is_gone_fails_the_change() {
    let node = Running::start("work_mem = '3MB'");
    let before = node.file();
    let token = CancellationToken::new();
    let deaf: Reload = Arc::new(|| true);
    let error = node.change_by("work_mem = '7MB'", &deaf, &token).await.unwrap_err();
    assert!(matches!(error, SettingsError::NotRead), "{error:?}");
    let gone: Reload = Arc::new(|| false);
    let error = node.change_by("work_mem = '7MB'", &gone, &token).await.unwrap_err();
    assert!(matches!(error, SettingsError::Gone), "{error:?}");
    assert_eq!(node.file(), before);
    // Somebody else writes in the same moment.
    let (data, reload) = (node.server.data(), node.reload.clone());
    let meddling: Reload = Arc::new(move || {
        let path = data.join("postgresql.conf");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace("work_mem = '7MB'", "")).unwrap();
        reload()
    });
    let error = node.change_by("my.own = 'x'\nwork_mem = '7MB'", &meddling, &token).await.unwrap_err();
    assert!(matches!(&error, SettingsError::NotTaken(names) if names == &["work_mem"]), "{error:?}");
    let report = node.settings.reported().get();
    let [rejected] = &report.rejected[..] else { panic!("{report:?}") };
    assert_eq!(rejected.name.as_deref(), Some("work_mem"));
    assert!(rejected.reason.contains("from elsewhere"), "{report:?}");
    assert_eq!(node.file(), before);
    assert_eq!(node.show("my.own").await.as_deref().unwrap_or_default(), "");
}

#[tokio::test]
async fn a_hung_postmaster_ends_in_an_error_and_has_the_old_settings_afterwards() {
    let node = Running::start("work_mem = '3MB'");
    let before = node.file();
    let (pid, reload) = (node.server.pid(), node.reload.clone());
    let hanging: Reload = Arc::new(move || kill(pid, Signal::SIGSTOP).is_ok() && reload());
    let error = node.change_by("work_mem = '7MB'", &hanging, &CancellationToken::new()).await.unwrap_err();
    assert!(matches!(error, SettingsError::Connect(catalog::ConnectError::TimedOut { .. })), "{error:?}");
    assert_eq!(node.file(), before);
    kill(pid, Signal::SIGCONT).unwrap();
    assert_eq!(node.show("work_mem").await.unwrap(), "3MB");
}

/// Cancelled or dropped at any point: the old settings, on file and in force.
#[tokio::test]
async fn a_cancelled_change_is_taken_back() {
    let node = Running::start("work_mem = '3MB'");
    let before = node.file();
    let token = CancellationToken::new();
    let (stop, reload) = (token.clone(), node.reload.clone());
    let cancelling: Reload = Arc::new(move || {
        stop.cancel();
        reload()
    });
    let error = node.change_by("work_mem = '7MB'", &cancelling, &token).await.unwrap_err();
    assert!(matches!(error, SettingsError::Cancelled), "{error:?}");
    assert_eq!((node.file(), node.reloads()), (before.clone(), 2));
    assert_eq!(node.show("work_mem").await.unwrap(), "3MB");
    assert!(!node.metrics.render(0).unwrap().contains("compute_ctl_settings_reloads_total"));

    // At every point where it waits.
    let mut polls = 0;
    loop {
        let never = CancellationToken::new();
        let mut change = Box::pin(node.change_by("work_mem = '7MB'", &node.reload, &never));
        let mut done = false;
        for _ in 0..=polls {
            if let std::task::Poll::Ready(result) = futures_util::poll!(change.as_mut()) {
                result.unwrap();
                done = true;
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(change);
        if done {
            break;
        }
        polls += 1;
    }
    assert_eq!(node.show("work_mem").await.unwrap(), "7MB");
}

#[tokio::test]
async fn the_size_limit_is_lifted_for_the_work_and_back_after_it() {
    const LIMIT: &str = "neon.max_cluster_size";
    let node = Running::start(&format!("{LIMIT} = 1000\ninclude_if_exists = '{}'", conf::OVERRIDE_FILE));
    let data = node.server.data();
    conf::clear_override(&data).unwrap();
    assert_eq!(node.show(LIMIT).await.unwrap(), "1000");

    let lifted = SizeLimitLifted::lift(&data, &node.reload).await.unwrap();
    assert_eq!(node.show(LIMIT).await.unwrap(), "-1");
    lifted.end(false).await.unwrap();
    assert_eq!(node.show(LIMIT).await.unwrap(), "1000");
    assert_eq!((node.file(), node.reloads()), (node.base.clone(), 2));

    // The work fails.
    let work = async {
        let _lifted = SizeLimitLifted::lift(&data, &node.reload).await.unwrap();
        assert_eq!(node.show(LIMIT).await.unwrap(), "-1");
        Err::<(), &str>("no such role")
    };
    assert!(work.await.is_err());
    assert_eq!(node.show(LIMIT).await.unwrap(), "1000");
    assert_eq!(node.reloads(), 4);

    // With subscribers, who are let in once.
    let disabled = "neon.disable_logical_replication_subscribers";
    for _ in 0..2 {
        let lifted = SizeLimitLifted::lift(&data, &node.reload).await.unwrap();
        lifted.end(true).await.unwrap();
        assert_eq!(node.show(disabled).await.unwrap(), "false");
        assert_eq!(node.show(LIMIT).await.unwrap(), "1000");
    }
    assert_eq!(node.file(), format!("{}\n{disabled}=false", node.base));
    assert_eq!(fs::read_to_string(data.join(conf::OVERRIDE_FILE)).unwrap(), "");
}
