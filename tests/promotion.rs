//! A standby becomes a primary: the whole program on a real one, and what is put in force meanwhile.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod support;

use std::cell::RefCell;
use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use compute_ctl::catalog::{self, ConnectionSettings, Profile};
use compute_ctl::postgres::conf;
use compute_ctl::postgres::promotion::{Held, Promotion, PromotionError, promote};
use compute_ctl::postgres::settings::Reload;
use compute_states::Lsn;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use support::lab::patiently;
use support::node::{COMPUTE_ID, Node, Place, eventually, token};
use support::pg::{self, ADMIN, Server};
use tokio_util::sync::CancellationToken;

/// More log than any server here writes.
const NEVER: &str = "FFFFFFFF/0";

/// A primary, and a place with a copy of it that follows it when a node is started there.
struct Pair {
    primary: RefCell<Server>,
    place: Place,
}

impl Pair {
    fn new() -> Self {
        let (primary, place) = (Server::start("wal_level = replica"), Place::new());
        let mut backup = pg::command("pg_basebackup");
        backup.args(["-U", ADMIN, "--checkpoint=fast", "--no-sync", "-p", &primary.port().to_string(), "-h"]);
        let output = backup.arg(primary.socket_dir()).arg("-D").arg(place.pgdata()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let pair = Pair { primary: RefCell::new(primary), place };
        let trust = "local all all trust\nhost all all 127.0.0.1/32 trust\n";
        for (name, text) in [("standby.signal", ""), ("pg_hba.conf", trust)] {
            let path = pair.place.pgdata().join(name);
            fs::write(&path, text).unwrap();
            pg::give(&path);
        }
        pair.place.configure(&pair.replica());
        pair
    }

    fn replica(&self) -> Value {
        let mut spec = self.place.kept_spec();
        spec["mode"] = json!("Replica");
        let primary = self.primary.borrow();
        let socket = primary.socket_dir().display();
        let conninfo = format!("host={socket} port={} user={ADMIN}", primary.port());
        let settings = spec["cluster"]["settings"].as_array_mut().unwrap();
        settings.push(json!({ "name": "primary_conninfo", "value": conninfo, "vartype": "string" }));
        spec
    }

    /// What the node is to be: a primary with a role and a database, which the old one does not have.
    fn primary(&self) -> Value {
        let mut spec = self.place.kept_spec();
        spec["cluster"]["roles"] = json!([{ "name": "app", "encrypted_password": null, "options": null }]);
        spec["cluster"]["databases"] = json!([{ "name": "store", "owner": "app", "options": null }]);
        spec
    }

    fn start(&self) -> Node<'_> {
        let node = self.place.start(&[]);
        node.wait_status("running");
        assert_eq!(self.place.sql("select pg_is_in_recovery()"), "t");
        node
    }

    /// Runs SQL on the old primary.
    fn sql(&self, sql: &str) -> String {
        let primary = self.primary.borrow();
        let mut psql = pg::command("psql");
        psql.args(["-XAtq", "-U", ADMIN, "-d", "postgres", "-p", &primary.port().to_string(), "-h"]);
        let output = psql.arg(primary.socket_dir()).args(["-c", sql]).output().unwrap();
        assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Writes a row, and stops the primary; the end of its log.
    fn finish(&self) -> String {
        self.sql("create table kept as select 42 as answer");
        let lsn = self.sql("select pg_current_wal_flush_lsn()");
        self.primary.borrow_mut().stop();
        lsn
    }

    fn body(&self, lsn: &str) -> Value {
        json!({ "spec": self.primary(), "wal_flush_lsn": lsn })
    }

    /// What `ALTER SYSTEM` would have left.
    fn altered(&self) -> String {
        let text = fs::read_to_string(self.place.pgdata().join("postgresql.auto.conf")).unwrap();
        text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).collect()
    }
}

fn promoted(answer: &(u16, String)) -> Value {
    assert_eq!(answer.0, 200, "{}", answer.1);
    let json: Value = serde_json::from_str(&answer.1).unwrap();
    assert_eq!(json["status"], "completed", "{json}");
    json
}

fn failed(answer: &(u16, String)) -> String {
    assert_eq!(answer.0, 500, "{}", answer.1);
    let json: Value = serde_json::from_str(&answer.1).unwrap();
    assert_eq!(json["status"], "failed", "{json}");
    json["error"].as_str().unwrap().to_owned()
}

/// Waits until the work on a promotion has begun: a session asks how far the log is.
fn begun(pair: &Pair) {
    eventually("a session that asks", || {
        let asks = "select count(*) from pg_stat_activity where query like '%pg_last_wal_replay_lsn%' \
                    and pid <> pg_backend_pid()";
        (pair.place.sql(asks) != "0").then_some(())
    });
}

#[test]
fn a_standby_that_streams_becomes_a_primary() {
    let pair = Pair::new();
    let node = pair.start();
    let lsn = pair.finish();
    // As if the promotion had put something in force.
    fs::write(pair.place.pgdata().join(conf::OVERRIDE_FILE), "work_mem = '77MB'\n").unwrap();
    let answer = node.post("/promote", Some(&pair.body(&lsn)));
    let times = promoted(&answer);
    for part in ["lsn_wait_time_ms", "pg_promote_time_ms", "reconfigure_time_ms"] {
        assert!(times[part].is_u64(), "{times}");
    }
    let place = &pair.place;
    // The row is there, more can be written, and the new spec is applied.
    assert_eq!(place.sql("select answer from kept"), "42");
    place.sql("insert into kept values (43)");
    assert_eq!(place.sql("select datname from pg_database where datname = 'store'"), "store");
    assert_eq!(place.sql("select count(*) from pg_roles where rolname = 'app'"), "1");
    assert_eq!(place.sql("show primary_conninfo"), "");
    assert!(!place.pgdata().join("standby.signal").exists());
    let status = node.status().unwrap();
    assert_eq!((&status["status"], &status["error"]), (&json!("running"), &Value::Null));
    // The original's settings of a promotion would stand here, and win over whatever comes later.
    assert_eq!(pair.altered(), "");
    assert_eq!(fs::read_to_string(place.pgdata().join(conf::OVERRIDE_FILE)).unwrap(), "");
    assert_eq!(place.sql("show work_mem"), "4MB");
    let mut later = pair.primary();
    let settings = later["cluster"]["settings"].as_array_mut().unwrap();
    settings.push(json!({ "name": "synchronous_standby_names", "value": "nobody", "vartype": "string" }));
    settings.push(json!({ "name": "synchronous_commit", "value": "local", "vartype": "string" }));
    assert_eq!(node.configure(&later).0, 200, "{}", node.log());
    assert_eq!(place.sql("show synchronous_standby_names"), "nobody");
    // It is done once, whatever is asked for now.
    assert_eq!(node.post("/promote", Some(&pair.body(NEVER))), answer);
    node.terminate();
    // It stays a primary.
    place.configure(&pair.primary());
    let node = place.start(&[]);
    node.wait_status("running");
    assert_eq!(place.sql("select count(*) from kept"), "2");
    assert_eq!(
        failed(&node.post("/promote", Some(&pair.body(&lsn)))),
        r#"compute mode "primary" is not replica"#
    );
    node.terminate();
}

#[test]
fn a_log_that_does_not_come_is_a_failure_that_can_be_repeated() {
    let pair = Pair::new();
    let node = pair.start();
    let lsn = pair.finish();
    let mut to_a_replica = pair.body(&lsn);
    to_a_replica["spec"] = pair.replica();
    let error = failed(&node.post("/promote", Some(&to_a_replica)));
    assert_eq!(error, "the spec to promote to should have mode Primary, and has mode replica");
    let error = failed(&node.post("/promote", Some(&pair.body(NEVER))));
    assert_eq!(error, "didn't catch up with primary in 20 retries");
    assert_eq!(pair.place.sql("select pg_is_in_recovery()"), "t");
    let status = node.status().unwrap();
    assert_eq!((&status["status"], &status["error"]), (&json!("running"), &Value::Null));
    promoted(&node.post("/promote", Some(&pair.body(&lsn))));
    assert_eq!(pair.place.sql("select answer from kept"), "42");
    node.terminate();
}

/// A server that was promoted is what it was promoted to, whatever else is wanted after that and cannot be applied:
/// with that it is started again.
#[test]
fn what_it_was_promoted_to_is_kept_though_it_was_not_applied() {
    let pair = Pair::new();
    let node = pair.place.start(&["--restart", "on-failure"]);
    node.wait_status("running");
    let lsn = pair.finish();
    let mut body = pair.body(&lsn);
    body["spec"]["cluster"]["databases"][0]["owner"] = json!("somebody");
    failed(&node.post("/promote", Some(&body)));
    assert_eq!(pair.place.sql("select pg_is_in_recovery()"), "f");
    // More than are kept of those that nobody needs.
    for _ in 0..compute_ctl::limits::SPECS_KEPT + 3 {
        assert_eq!(node.configure(&body["spec"]).0, 500);
    }
    pair.place.sql("create role somebody");
    let postmaster = node.postmaster();
    kill(Pid::from_raw(postmaster), Signal::SIGKILL).unwrap();
    let status = node.wait("another Postgres, or none", |node| {
        let (log, status) = (node.log(), node.status()?);
        assert!(!log.contains("this is a bug"), "{log}");
        (node.postmaster() != postmaster && status["status"] == "running").then_some(status)
    });
    assert_eq!(status["error"], Value::Null, "{status}");
    assert_eq!(pair.place.sql("select count(*) from pg_database where datname = 'store'"), "1");
    node.terminate();
}

#[test]
fn a_client_that_goes_away_does_not_stop_it() {
    let pair = Pair::new();
    let node = pair.start();
    // A little more than there is so far.
    let lsn = pair.sql("select pg_current_wal_flush_lsn() + 1000000::numeric");
    let body = pair.body(&lsn).to_string();
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, pair.place.external)).unwrap();
    write!(
        stream,
        "POST /promote HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        token(COMPUTE_ID),
        body.len()
    )
    .unwrap();
    begun(&pair);
    drop(stream);
    // Nobody waits for it, and it goes on.
    pair.sql("create table more as select generate_series(1, 100000)");
    node.wait_log("outcome=\"completed\"");
    promoted(&node.post("/promote", Some(&pair.body(NEVER))));
    assert_eq!(pair.place.sql("select pg_is_in_recovery()"), "f");
    node.terminate();
}

#[test]
fn a_termination_cuts_a_promotion_short() {
    let pair = Pair::new();
    let node = pair.start();
    let waiting = node.post_later("/promote", Some(&pair.body(NEVER)));
    begun(&pair);
    node.terminate();
    assert_eq!(failed(&waiting.join().unwrap()), "the compute went down before it was promoted");
}

#[test]
fn a_crash_during_a_promotion_is_told() {
    let pair = Pair::new();
    let node = pair.start();
    let waiting = node.post_later("/promote", Some(&pair.body(NEVER)));
    begun(&pair);
    let before = pair.place.processes();
    kill(Pid::from_raw(node.postmaster()), Signal::SIGKILL).unwrap();
    // The end of its session may be noticed before the end of the server.
    let told = failed(&waiting.join().unwrap());
    let crash = "Postgres crashed: it was ended by signal 9";
    assert!(told == crash || told.starts_with("asking the server about its promotion: "), "{told}");
    node.ends_with(1, &before);
}

// ---- what is put in force meanwhile -------------------------------------------------------------------

/// What a Neon primary needs from its first record on stands where the next `postgresql.conf` replaces it.
#[tokio::test]
async fn what_a_promotion_puts_in_force_gives_way_to_the_next_file() {
    let primary = Server::start("wal_level = replica");
    let standby = primary.standby();
    let data = standby.data();
    let file = data.join("postgresql.conf");
    let base =
        fs::read_to_string(&file).unwrap() + "\ninclude_if_exists = 'compute_ctl_temp_override.conf'\n";
    fs::write(&file, &base).unwrap();
    let postmaster = standby.pid();
    let reload: Reload = Arc::new(move || kill(postmaster, Signal::SIGHUP).is_ok());
    let server = ConnectionSettings::new(&standby.connstr("postgres"), Profile::Standard).unwrap();
    let safekeepers = ["sk-1:1", "sk2:2"].map(|address| address.parse().unwrap());
    let auto = fs::read(data.join("postgresql.auto.conf")).unwrap();
    let promotion = Promotion {
        pgdata: &data,
        server: &server,
        reload: &reload,
        lsn: Lsn(0),
        safekeepers: Some(&safekeepers),
        catch_up: Duration::from_secs(60),
    };
    let token = CancellationToken::new();
    let impatient = Promotion { lsn: Lsn(u64::MAX), catch_up: Duration::ZERO, ..promotion };
    let error = promote(impatient, &token).await.unwrap_err();
    assert!(matches!(error, PromotionError::NotCaughtUp) && conf::overridden(&data).is_empty(), "{error}");
    promote(promotion, &token).await.unwrap();

    let session = catalog::connect(&server).await.unwrap();
    let shows = async |name: &str| -> String {
        session.client().query_one(&format!("show {name}"), &[]).await.unwrap().get(0)
    };
    assert_eq!(shows("transaction_read_only").await, "off");
    assert_eq!(shows("synchronous_standby_names").await, "walproposer");
    assert_eq!(shows("neon.safekeepers").await, "sk-1:1,sk2:2");
    // Asked again, it finds everything done, and tells nobody to read anything again.
    let mute: Reload = Arc::new(|| panic!("the server is told"));
    promote(Promotion { reload: &mute, ..promotion }, &token).await.unwrap();

    // A new file that is not taken leaves it in force, one that is taken replaces it.
    let held = Held::take_back(&data).unwrap();
    assert_eq!(shows("synchronous_standby_names").await, "walproposer");
    held.put_back(&reload).unwrap();
    fs::write(&file, format!("{base}synchronous_standby_names = ''\nneon.safekeepers = 'sk3:3'\n")).unwrap();
    let _held = Held::take_back(&data).unwrap();
    reload();
    let replaced = async {
        loop {
            match shows("neon.safekeepers").await.as_str() {
                "sk3:3" => return,
                before => assert_eq!(before, "sk-1:1,sk2:2"),
            }
        }
    };
    patiently(replaced).await;
    assert_eq!(shows("synchronous_standby_names").await, "");
    assert_eq!(fs::read(data.join("postgresql.auto.conf")).unwrap(), auto);
}
