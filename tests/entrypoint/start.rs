//! From nothing to running, and from one configuration to the next.

use serde_json::{Value, json};

use crate::stop::wrapped;
use crate::support::node::{COMPUTE_ID, Place, config, eventually, http, token};

/// Of the password "secret of alice", salt and 4096 rounds as RFC 5802 has them.
const ALICE: &str = "SCRAM-SHA-256$4096:MDEyMzQ1Njc4OWFiY2RlZg==$OyL4hqcf678i14iRkuOrVbO/6F1ll7nIphoSFq2gqOQ=:\
                     rdSZSZTufHBcaQ+kGp+9F4GeR/7yxGykM3yG8svBZbw=";
/// Of the password "secret of bob", without the prefix `md5`, as control planes send it.
const BOB: &str = "45d7ddcac359fdc9d5ad8e9ff2660ce0";

fn with_roles(place: &Place) -> Value {
    let mut spec = place.spec();
    spec["cluster"]["roles"] = json!([
        { "name": "alice", "encrypted_password": ALICE },
        { "name": "bob", "encrypted_password": BOB },
    ]);
    spec["cluster"]["databases"] = json!([{ "name": "app", "owner": "alice" }]);
    spec
}

#[test]
fn a_spec_in_the_config_leads_through_init_to_running() {
    let place = Place::new();
    place.configure(&with_roles(&place));
    let mut node = place.start(&[]);
    let status = node.wait_status("running");
    assert_eq!(status["error"], Value::Null);
    node.went(&["init", "running"]);

    for (role, password) in [("alice", "secret of alice"), ("bob", "secret of bob")] {
        assert_eq!(place.log_in(role, password, "app"), Ok(role.to_owned()));
        let refused = place.log_in(role, "guessed", "app").expect_err("the password is wrong");
        assert!(refused.contains("password authentication failed"), "{refused}");
    }
    let owner = "select pg_get_userbyid(datdba) from pg_database where datname = 'app'";
    assert_eq!(place.sql(owner), "alice");

    // Metrics are for everyone, the rest for those with a token of this compute.
    let (code, text) = http(place.external, "GET", "/metrics", None, None).unwrap();
    assert!(code == 200 && text.contains("status=\"running\"} 1"), "{code} {text}");
    assert_eq!(http(place.external, "GET", "/status", None, None).unwrap().0, 400);
    let stranger = token("another-compute");
    assert_eq!(http(place.external, "GET", "/status", Some(&stranger), None).unwrap().0, 403);
    for path in ["/configure", "/terminate"] {
        assert_eq!(http(place.external, "POST", path, None, Some("{}")).unwrap().0, 400, "{path}");
    }
    node.token = Some(token(COMPUTE_ID));
    node.terminate();
    assert_eq!(place.cluster_state(), "shut down");
}

#[test]
fn without_a_spec_it_is_empty_until_it_is_configured_and_again() {
    let place = Place::new();
    place.configure(&Value::Null);
    let node = place.start(&[]);
    node.wait_status("empty");

    let spec = with_roles(&place);
    let (code, body) = node.configure(&spec);
    assert_eq!((code, &body["status"]), (200, &json!("running")), "{body}");
    node.went(&["configuration-pending", "init", "running"]);
    assert_eq!(place.log_in("alice", "secret of alice", "app"), Ok("alice".to_owned()));
    assert_eq!(place.sql("show work_mem"), "4MB");
    let postmaster = node.postmaster();

    // More of everything, without a restart.
    let mut more = spec.clone();
    let append = |list: &mut Value, item| list.as_array_mut().unwrap().push(item);
    append(&mut more["cluster"]["roles"], json!({ "name": "carol", "encrypted_password": BOB }));
    append(
        &mut more["cluster"]["settings"],
        json!({ "name": "work_mem", "value": "7MB", "vartype": "string" }),
    );
    assert_eq!(node.configure(&more).0, 200);
    assert_eq!(place.sql("select count(*) from pg_roles where rolname = 'carol'"), "1");
    assert_eq!(place.sql("show work_mem"), "7MB");

    // One that is wrong in itself changes nothing.
    let mut wrong = more.clone();
    wrong["cluster"]["roles"][0]["name"] = json!("");
    let (code, body) = node.configure(&wrong);
    assert_eq!(code, 400, "{body}");
    assert!(body["error"].as_str().is_some_and(|text| text.contains("cluster.roles[0].name")), "{body}");
    assert_eq!(node.status().unwrap()["status"], "running");

    // One that Postgres refuses.
    let mut failing = more.clone();
    append(&mut failing["cluster"]["databases"], json!({ "name": "other", "owner": "nobody at all" }));
    let (code, body) = node.configure(&failing);
    assert_eq!(code, 500, "{body}");
    let error = body["error"].as_str().unwrap();
    assert!(
        error.starts_with("compute configuration failed: ") && error.contains("nobody at all"),
        "{error}"
    );
    let status = node.status().unwrap();
    assert_eq!(status["status"], "failed");
    assert!(status["error"].as_str().is_some_and(|text| text.contains("nobody at all")), "{status}");
    assert_eq!(place.log_in("alice", "secret of alice", "app"), Ok("alice".to_owned()));

    let (code, body) = node.configure(&more);
    assert_eq!((code, &body["status"], &body["error"]), (200, &json!("running"), &Value::Null), "{body}");
    assert_eq!(node.postmaster(), postmaster, "it was never restarted");
    node.terminate();
}

/// People and tests look for these words.
#[test]
fn a_reconfiguration_is_told_with_its_operation() {
    let place = Place::new();
    let mut spec = place.spec();
    spec["operation_uuid"] = json!("b3b0f6de-52c1-4b7f-9a52-0c8f6a1f7d11");
    place.configure(&spec);
    let node = place.start(&[]);
    node.wait_status("running");
    let told = |end: &str, operation: &str| {
        format!("{end} reconfiguration of compute node for operation {operation}")
    };
    assert!(!node.log().contains("reconfiguration of compute node"), "a start is none: {}", node.log());
    for (operation, shown) in [(json!("6a1f7d11"), "6a1f7d11"), (Value::Null, "unknown")] {
        spec["operation_uuid"] = operation;
        assert_eq!(node.configure(&spec).0, 200);
        node.wait_log(&told("finished", shown));
        assert!(node.log().contains(&told("beginning", shown)), "{}", node.log());
    }
    // One that fails is not finished.
    spec["operation_uuid"] = json!("0c8f6a1f");
    spec["cluster"]["databases"] = json!([{ "name": "late", "owner": "nobody" }]);
    assert_eq!(node.configure(&spec).0, 500);
    node.wait_log(&told("beginning", "0c8f6a1f"));
    node.terminate();
    assert!(!node.log().contains(&told("finished", "0c8f6a1f")), "{}", node.log());
}

#[test]
fn a_refresh_of_a_running_compute_ends_where_it_began() {
    let place = Place::new();
    place.configure(&place.spec());
    let node = place.start(&[]);
    node.wait_status("running");
    assert_eq!(node.refresh(), 200);
    node.wait("the refresh", |node| {
        let went = node.transitions();
        (went.len() == 4).then(|| assert_eq!(went[2..], ["refresh-configuration-pending", "running"]))
    });
    node.terminate();
}

#[test]
fn a_refresh_that_finds_nothing_tries_again_until_it_does() {
    let place = Place::new();
    place.configure(&place.spec());
    let node = place.start(&[]);
    node.wait_status("running");
    std::fs::write(place.config_file(), "{").unwrap();
    assert_eq!(node.refresh(), 200);
    let status = node.wait("a failed attempt", |node| node.status().filter(|body| !body["error"].is_null()));
    assert_eq!(status["status"], "refresh_configuration_pending");
    assert_eq!(place.sql("select 1"), "1");
    place.configure(&place.spec());
    let status = node.wait_status("running");
    assert_eq!(status["error"], Value::Null);
    node.terminate();
}

#[test]
fn after_a_failed_configure_a_refresh_applies_what_is_wanted() {
    let place = Place::new();
    place.configure(&place.spec());
    let node = place.start(&[]);
    node.wait_status("running");
    let mut spec = place.spec();
    spec["cluster"]["databases"] = json!([{ "name": "late", "owner": "somebody" }]);
    assert_eq!(node.configure(&spec).0, 500);
    place.sql("create role somebody");
    assert_eq!(node.refresh(), 200);
    assert_eq!(node.wait_status("running")["error"], Value::Null);
    assert_eq!(place.sql("select count(*) from pg_database where datname = 'late'"), "1");
    node.terminate();
}

#[test]
fn data_are_kept_or_made_anew_as_the_kind_of_storage_says() {
    let place = Place::new();
    for (kind, expected) in [("existing", "2"), ("initdb", "0")] {
        let mut spec = place.spec();
        spec["storage"]["kind"] = json!(kind);
        place.configure(&spec);
        if kind == "initdb" {
            // What was kept is somebody's data from then on.
            let node = place.start(&[]);
            assert_eq!(node.exit_code(), 73, "{}", node.log());
            std::fs::remove_dir_all(place.pgdata()).unwrap();
        }
        for round in 0..2 {
            let node = place.start(&[]);
            node.wait_status("running");
            place.sql("create table if not exists kept (round int)");
            if round == 1 {
                let rows = place.sql("select count(*) * 2 from kept");
                assert_eq!(rows, expected, "{kind}");
            }
            place.sql("insert into kept values (1)");
            node.terminate();
        }
    }
}

#[test]
fn standalone_needs_no_token_and_tells_a_person_how_to_connect() {
    let place = Place::new();
    let mut command = place.program();
    command.args(["run", "--standalone", "--pgdata"]).arg(place.pgdata());
    command.arg("--cache-dir").arg(place.cache());
    let mut node = place.run(command);
    node.token = None;
    let banner = node.wait("the banner", |node| Some(node.out()).filter(|out| out.ends_with("╯\n")));
    let find = |prefix: &str| {
        let tail = banner.split(prefix).nth(1).unwrap_or_else(|| panic!("{prefix} not in\n{banner}"));
        tail.split_whitespace().next().unwrap().to_owned()
    };
    let connstr = find("psql ");
    let output =
        crate::support::pg::command("psql").args([&connstr, "-XwtAqc", "select current_user"]).output();
    assert_eq!(String::from_utf8_lossy(&output.unwrap().stdout).trim(), "app", "{connstr}");
    let port: u16 = find("http://127.0.0.1:").split('/').next().unwrap().parse().unwrap();
    let (code, body) = http(port, "GET", "/status", None, None).unwrap();
    assert!(code == 200 && body.contains(r#""status":"running""#), "{code} {body}");
    // There is nowhere to look for another spec, so there is none.
    assert_eq!(http(port, "POST", "/refresh_configuration", None, None).unwrap().0, 200);
    node.wait("the end of the refresh", |_| {
        let (_, history) = http(port, "GET", "/history?limit=1", None, None).ok()?;
        let ended = r#""from":"refresh_configuration_pending","to":"running""#;
        history.contains(ended).then_some(())
    });
    let before = place.processes();
    let (code, _) = http(port, "POST", "/terminate?mode=immediate", None, None).unwrap();
    assert_eq!(code, 200);
    node.ends_with(0, &before);
}

/// What there is to start with is the program's own, so a refresh after a start that failed starts it again.
#[test]
fn standalone_that_could_not_start_is_started_again_by_a_refresh() {
    let place = Place::new();
    let broken = place.path().join("broken");
    std::fs::write(&broken, "").unwrap();
    let line = format!("[ ! -e {} ] || [ \"$1\" != -D ] || exit 1", broken.display());
    let pgbin = wrapped(&place, &[("postgres", &line)]);
    let (external, internal) = (place.external.to_string(), place.internal.to_string());
    let mut command = place.program();
    command.args(["run", "--standalone", "--pgbin", &pgbin, "--pgdata"]).arg(place.pgdata());
    command.args(["--external-http-port", &external, "--internal-http-port", &internal]);
    command.arg("--cache-dir").arg(place.cache());
    let mut node = place.run(command);
    node.token = None;
    node.wait_status("failed");
    std::fs::remove_file(&broken).unwrap();
    assert_eq!(node.refresh(), 200);
    let status = node.wait_status("running");
    assert_eq!(status["error"], Value::Null, "{status}");
    node.terminate();
}

#[test]
fn the_config_may_come_as_a_legacy_bare_spec() {
    let place = Place::new();
    std::fs::write(place.config_file(), place.spec().to_string()).unwrap();
    crate::support::pg::give(&place.config_file());
    let mut command = place.program();
    let arguments: Vec<String> =
        place.arguments().into_iter().map(|word| word.replace("--config", "--spec-path")).collect();
    command.args(arguments);
    let node = place.run(command);
    // There are no keys in a bare spec, so no token opens the server; the metrics say how it is.
    node.wait("running in the metrics", |_| {
        let (_, text) = http(place.external, "GET", "/metrics", None, None).ok()?;
        text.contains("status=\"running\"} 1").then_some(())
    });
    assert_eq!(node.request("GET", "/status", None).unwrap().0, 401);
    let before = place.processes();
    node.signal(nix::sys::signal::Signal::SIGTERM);
    node.ends_with(0, &before);
}

#[test]
fn requests_that_are_refused_do_not_cost_the_one_under_way() {
    let place = Place::without_template();
    let (reached, gate) = (place.path().join("reached"), place.path().join("gate"));
    let wait = format!(": > {}; until [ -e {} ]; do sleep 0.02; done", reached.display(), gate.display());
    let pgbin = wrapped(&place, &[("initdb", &wait)]);
    place.configure(&Value::Null);
    let node = place.start(&["--pgbin", &pgbin]);
    node.wait_status("empty");
    let answer = node.post_later("/configure", Some(&config(&with_roles(&place))));
    node.wait_status("init");
    eventually("initdb", || reached.exists().then_some(()));
    for _ in 0..12 {
        assert_eq!(node.configure(&place.spec()).0, 412);
    }
    std::fs::write(&gate, "").unwrap();
    let (code, body) = answer.join().unwrap();
    assert_eq!(code, 200, "{body}");
    assert_eq!(place.log_in("alice", "secret of alice", "app"), Ok("alice".to_owned()));
    node.terminate();
}

#[test]
fn verifiers_of_passwords_stay_out_of_the_log() {
    let place = Place::new();
    let mut spec = with_roles(&place);
    let settings = spec["cluster"]["settings"].as_array_mut().unwrap();
    settings.push(json!({ "name": "log_statement", "value": "all", "vartype": "enum" }));
    settings.push(json!({ "name": "log_min_duration_statement", "value": "0", "vartype": "integer" }));
    place.configure(&spec);
    let node = place.start(&[]);
    node.wait_status("running");
    // One that fails, and those behind it in the same transaction.
    let limit = json!([{ "name": "NO SUCH OPTION", "value": null, "vartype": "bool" }]);
    spec["cluster"]["roles"] = json!([
        { "name": "carol", "encrypted_password": ALICE, "options": limit },
        { "name": "dave", "encrypted_password": ALICE },
    ]);
    let (code, body) = node.configure(&spec);
    assert_eq!(code, 500, "{body}");
    assert!(!body.to_string().contains("SCRAM-SHA-256"), "{body}");
    // The log goes on, so that what is looked for would be in it.
    place.sql("select 'said at last'");
    node.wait_log("said at last");
    assert!(!node.log().contains("SCRAM-SHA-256") && !node.log().contains(BOB), "{}", node.log());
    node.terminate();
}

#[test]
fn a_bare_spec_can_be_refreshed_too() {
    let place = Place::new();
    std::fs::write(place.config_file(), place.spec().to_string()).unwrap();
    crate::support::pg::give(&place.config_file());
    let mut command = place.program();
    let legacy = |word: String| if word == "--config" { "-S".to_owned() } else { word };
    // A bare spec comes without keys, so that no token is ever accepted.
    command.args(place.arguments().into_iter().map(legacy)).arg("--standalone");
    let node = place.run(command);
    node.wait_status("running");
    assert_eq!(node.refresh(), 200);
    let back = ["init", "running", "refresh-configuration-pending", "running"];
    node.wait("the way back", |node| (node.transitions() == back).then_some(()));
    node.terminate();
}

#[test]
fn the_token_for_the_control_plane_does_not_reach_what_postgres_runs() {
    let place = Place::new();
    place.configure(&place.spec());
    let mut command = place.program();
    command.args(place.arguments()).env("NEON_CONTROL_PLANE_TOKEN", "of no use").env("ANOTHER", "passed on");
    let node = place.run(command);
    node.wait_status("running");
    let seen = place.path().join("environment");
    place.sql(&format!("copy (select 1) to program 'cat >{0}; env >{0}'", seen.display()));
    let seen = std::fs::read_to_string(seen).unwrap();
    assert!(seen.lines().any(|line| line == "ANOTHER=passed on"), "{seen}");
    assert!(!seen.contains("NEON_CONTROL_PLANE_TOKEN"), "{seen}");
    node.terminate();
}

/// A disk that is full at first, as the program which makes clusters meets it.
#[test]
fn a_start_waits_for_room_on_the_disk() {
    let place = Place::without_template();
    let room = place.path().join("room");
    let full = format!("[ -e {} ] || {{ echo 'No space left on device' >&2; exit 1; }}", room.display());
    let pgbin = wrapped(&place, &[("initdb", &full)]);
    place.configure(&place.spec());
    let node = place.start(&["--pgbin", &pgbin]);
    node.wait("an error in status init", |node| {
        let status = node.status()?;
        let error = status["error"].as_str()?;
        assert_eq!(status["status"], "init", "{}", node.log());
        assert!(error.contains("No space left on device"), "{error}");
        Some(())
    });
    node.wait_log("trying again after a pause retry=2 of=10");
    std::fs::write(&room, "").unwrap();
    assert_eq!(node.wait_status("running")["error"], Value::Null);
    let metrics = node.request("GET", "/metrics", None).unwrap().1;
    assert!(metrics.contains("compute_ctl_storage_retries_total"), "{metrics}");
    node.terminate();

    // As often as the environment says.
    let place = Place::without_template();
    let pgbin = wrapped(&place, &[("initdb", "echo 'No space left on device' >&2; exit 1")]);
    place.configure(&place.spec());
    let mut command = place.program();
    command.args(place.arguments()).args(["--pgbin", &pgbin]);
    command.env("NEON_COMPUTE_TESTING_BASEBACKUP_RETRIES", "1");
    let node = place.run(command);
    node.wait_status("failed");
    let log = node.log();
    assert!(log.contains("retry=1 of=1") && !log.contains("retry=2"), "{log}");
    let before = place.processes();
    node.signal(nix::sys::signal::Signal::SIGTERM);
    node.ends_with(1, &before);
}
