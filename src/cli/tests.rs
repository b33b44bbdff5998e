use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use super::*;
use crate::activity::Source;

const FULL: &str =
    "-D /data/pg -C postgresql://cloud_admin@localhost:5433/postgres -i ep-1 -c /etc/config.json";

fn with_env(line: &str, env: &[(&str, &str)], root: bool) -> Result<Invocation, clap::Error> {
    let env: BTreeMap<&str, &str> = env.iter().copied().collect();
    let var = |name: &str| env.get(name).map(OsString::from);
    parse(std::iter::once("compute_ctl").chain(line.split_whitespace()), Environment { var: &var, root })
}

fn invocation(line: &str) -> Result<Invocation, clap::Error> {
    with_env(line, &[("HOME", "/home/someone")], false)
}

#[track_caller]
fn options(line: &str) -> RunOptions {
    match invocation(line) {
        Ok(Invocation::Run(options)) => *options,
        other => panic!("{line}: {other:?}"),
    }
}

#[track_caller]
fn refused(line: &str, words: &str) {
    let error = invocation(line).unwrap_err();
    assert_eq!(error.exit_code(), i32::from(ExitCode::Usage.code()));
    assert!(error.to_string().contains(words), "{line}: {error}");
}

#[test]
fn the_flat_flags_start_the_node() {
    let options = options(&format!("{FULL} -b /usr/lib/postgresql/17/bin/postgres"));
    assert_eq!(options.pgdata, Path::new("/data/pg"));
    assert_eq!(options.source, SpecSource::Config("/etc/config.json".into()));
    assert_eq!(options.compute_id, "ep-1");
    assert_eq!(options.pgbin.as_deref(), Some(Path::new("/usr/lib/postgresql/17/bin/postgres")));
    assert_eq!(
        (options.external_http_port, options.internal_http_port),
        (Port::Exact(3080), Port::Exact(3081))
    );
    assert_eq!((options.connstr.port(), options.postgres_port), (5433, Port::Exact(5433)));
    assert_eq!(
        (options.privileged_role_name.as_str(), options.user.as_str()),
        ("neon_superuser", "postgres")
    );
    assert_eq!((options.restart, options.crash_linger), (RestartPolicy::Never, Duration::from_millis(300)));
    assert_eq!(options.cache_dir, Path::new("/home/someone/.cache/compute_ctl"));
    assert!(!options.standalone && !options.dev && !options.overwrite_foreign_pgdata);
    assert_eq!(options.storage_retries, None);
    assert_eq!(options.not_yet_served(), <[String; 0]>::default());
}

#[test]
fn run_means_the_same_as_the_flat_flags() {
    let (flat, run) = (options(FULL), options(&format!("run {FULL}")));
    assert_eq!(format!("{flat:?}"), format!("{run:?}"));
}

#[test]
fn every_flag_of_the_original_parses() {
    let line = format!(
        "{FULL} --remote-ext-base-url http://ext/a// --external-http-port 1 --internal-http-port 2 \
         --privileged-role-name some_role --cgroup g --filecache-connstr host=localhost --vm-monitor-addr \
         127.0.0.1:10301 --resize-swap-on-bind --set-disk-quota-for-fs /mnt \
         --installed-extensions-collection-interval 60 --dev --pg-init-timeout 5 --lakebase-mode true"
    );
    let warned = options(&line).not_yet_served().join("\n");
    for flag in [
        "--remote-ext-base-url",
        "--cgroup",
        "--filecache-connstr",
        "--vm-monitor-addr",
        "--resize-swap-on-bind",
        "--set-disk-quota-for-fs",
        "--pg-init-timeout",
        "--lakebase-mode",
        "--dev",
    ] {
        assert!(warned.contains(flag), "{flag} missing in {warned}");
    }
    assert!(options(&format!("{FULL} --lakebase-mode false")).not_yet_served().is_empty());
}

#[test]
fn the_form_of_the_log_is_chosen_by_flag_then_variable() {
    let format = |line: &str, env: &[(&str, &str)]| match with_env(line, env, false) {
        Ok(Invocation::Run(options)) => options.log_format,
        other => panic!("{other:?}"),
    };
    let json = [("COMPUTE_CTL_LOG_FORMAT", "json")];
    assert_eq!(format(FULL, &[]), LogFormat::Text);
    assert_eq!(format(FULL, &json), LogFormat::Json);
    assert_eq!(format(&format!("{FULL} --log-format text"), &json), LogFormat::Text);
    assert_eq!(format(&format!("{FULL} --log-format json"), &[]), LogFormat::Json);
    refused(&format!("{FULL} --log-format xml"), "--log-format");
    let error = with_env(FULL, &[("COMPUTE_CTL_LOG_FORMAT", "xml")], false).unwrap_err();
    assert!(error.to_string().contains("COMPUTE_CTL_LOG_FORMAT must be text or json"), "{error}");
}

#[test]
fn log_files_are_for_one_flavour() {
    let directory =
        |line: &str, value: &str| match with_env(line, &[("COMPUTE_CTL_LOG_DIRECTORY", value)], false) {
            Ok(Invocation::Run(options)) => {
                (options.log_directory.clone(), options.not_yet_served().join("\n"))
            }
            other => panic!("{other:?}"),
        };
    let lakebase = format!("{FULL} --lakebase-mode true");
    let (given, warned) = directory(&lakebase, "/log");
    assert_eq!(given.as_deref(), Some(Path::new("/log")));
    assert!(!warned.contains("COMPUTE_CTL_LOG_DIRECTORY"), "{warned}");
    assert!(directory(&lakebase, "relative").0.is_some_and(|path| path.is_absolute()));
    assert_eq!(directory(&lakebase, "").0, None);
    let (given, warned) = directory(FULL, "/log");
    assert_eq!(given, None);
    assert!(warned.contains("COMPUTE_CTL_LOG_DIRECTORY has no effect: log files belong to --lakebase-mode"));
}

#[test]
fn the_environment_has_its_say() {
    let env = [
        ("POSTGRES_PATH", "/opt/pg/bin/postgres"),
        ("NEON_CONTROL_PLANE_TOKEN", "hunter2"),
        ("AUTOSCALING", ""),
        ("INSTANCE_ID", "x"),
        ("COMPUTE_CTL_LOG_DIRECTORY", "/l"),
        ("NEON_COMPUTE_TESTING_BASEBACKUP_RETRIES", "0"),
    ];
    let line = "-D /d -C postgresql://a@h/b -i x -p http://cp:9/api//";
    let Ok(Invocation::Run(from_env)) = with_env(line, &env, false) else { panic!() };
    assert_eq!(from_env.pgbin.as_deref(), Some(Path::new("/opt/pg/bin/postgres")));
    let token = crate::secret::Secret::new("hunter2");
    assert_eq!(from_env.source, SpecSource::ControlPlane { base: "http://cp:9/api".to_owned(), token });
    assert_eq!(from_env.not_yet_served().len(), 3);
    assert_eq!(from_env.storage_retries, Some(0));
    assert!(!format!("{from_env:?}").contains("hunter2"));
    let many = [("NEON_COMPUTE_TESTING_BASEBACKUP_RETRIES", "65536")];
    let error = with_env(FULL, &many, false).unwrap_err();
    assert!(error.to_string().contains("BASEBACKUP_RETRIES must be a number from 0 to 65535"), "{error}");
    // A flag wins over its variable, and sub-commands do not mind variables.
    let Ok(Invocation::Run(from_flag)) = with_env(&format!("{line} -b /x/postgres"), &env, false) else {
        panic!()
    };
    assert_eq!(from_flag.pgbin.as_deref(), Some(Path::new("/x/postgres")));
    assert!(with_env("check x.json", &env, false).is_ok());
}

#[test]
fn the_legacy_spec_flag_has_three_names() {
    for flag in ["-S", "--spec", "--spec-path"] {
        let options = options(&format!("-D /d -C postgresql://a@h/b {flag} /s.json -b /x/postgres"));
        assert_eq!(options.source, SpecSource::Spec("/s.json".into()));
        assert_eq!(options.compute_id, "local");
        assert_eq!(options.connstr.port(), 5432);
    }
}

#[test]
fn standalone_needs_nothing_else() {
    let options_alone = options("--standalone");
    assert_eq!(options_alone.source, SpecSource::Standalone);
    assert_eq!(options_alone.pgdata, Path::new("/home/someone/.local/state/compute_ctl/pgdata"));
    assert_eq!(options_alone.external_http_port, Port::Preferred(3080));
    assert_eq!(options_alone.postgres_port, Port::Preferred(5432));
    assert_eq!(options_alone.connstr.reveal(), "postgresql://cloud_admin@127.0.0.1:5432/postgres");
    assert_eq!(options_alone.connstr.with_port(7).port(), 7);
    let with_config = options("--standalone -c /c.json --external-http-port 9 -C postgresql://a@h:3081/b");
    assert_eq!(with_config.source, SpecSource::Config("/c.json".into()));
    assert_eq!(with_config.external_http_port, Port::Exact(9));
    let Ok(Invocation::Run(root)) = with_env("--standalone", &[("HOME", "/root")], true) else { panic!() };
    assert_eq!(root.pgdata, Path::new("/var/lib/compute_ctl/pgdata"));
    assert_eq!(root.cache_dir, Path::new("/var/cache/compute_ctl"));
    let xdg = [("HOME", "/h"), ("XDG_STATE_HOME", "/s"), ("XDG_CACHE_HOME", "relative")];
    let Ok(Invocation::Run(xdg)) = with_env("--standalone", &xdg, false) else { panic!() };
    assert_eq!(xdg.pgdata, Path::new("/s/compute_ctl/pgdata"));
    assert_eq!(xdg.cache_dir, Path::new("/h/.cache/compute_ctl"));
}

#[test]
fn what_is_required_is_asked_for() {
    refused("", "where the spec comes from");
    refused("-D /d -C postgresql://a@h/b -i x", "--standalone");
    refused("-C postgresql://a@h/b -i x -c /c", "--pgdata");
    refused("-D /d -i x -c /c", "--connstr");
    refused("-D /d -C postgresql://a@h/b -c /c", "--compute-id");
    refused("-D /d -C postgresql://a@h/b -p http://cp", "--compute-id");
    refused("-D /d -C postgresql://a@h/b -c /c --compute-id=", "must not be empty");
}

#[test]
fn what_cannot_go_together_is_refused() {
    refused(&format!("{FULL} -p http://cp"), "cannot be used with");
    refused(&format!("{FULL} -S /s"), "cannot be used with");
    refused("-D /d -C postgresql://a@h/b -i x -S /s -p http://cp", "cannot be used with");
    refused("--standalone -i x -p http://cp", "cannot be used with");
    refused(&format!("{FULL} --http-port 1 --external-http-port 2"), "cannot be used with");
    refused(&format!("{FULL} --http-port 1 --internal-http-port 2"), "cannot be used with");
    refused(&format!("{FULL} check /c"), "check");
    refused(&format!("{FULL} --no-such-flag"), "--no-such-flag");
}

#[test]
fn ports_are_distinct_and_the_old_port_flag_still_works() {
    refused(&format!("{FULL} --external-http-port 3081"), "3081");
    refused(&format!("{FULL} --internal-http-port 5433"), "PostgreSQL");
    refused(&format!("{FULL} --external-http-port 65536"), "65536");
    let any = options(&format!("{FULL} --external-http-port 0 --internal-http-port 0"));
    assert_eq!(any.external_http_port, Port::Exact(0));
    let old = options(&format!("{FULL} --http-port 4000"));
    assert_eq!((old.external_http_port, old.internal_http_port), (Port::Exact(4000), Port::Exact(3081)));
    let pair = options(&format!("{FULL} --http-port 4000 --lakebase-mode true"));
    assert_eq!((pair.external_http_port, pair.internal_http_port), (Port::Exact(4000), Port::Exact(4001)));
    refused(&format!("{FULL} --http-port 65535 --lakebase-mode true"), "65534");
    // A Unix socket takes no TCP port.
    options("-D /d -C postgresql://a@%2Ftmp:3080/b -i x -c /c");
}

#[test]
fn connection_strings_are_judged_and_never_quoted() {
    let line = |connstr: &str| format!("-D /d -i x -c /c -C {connstr}");
    for bad in [
        "host=hunter2",
        "hunter2",
        "http://u:hunter2@h/b",
        "postgresql://u:hunter2@h:0/b",
        "postgresql://u:hunter2@h:99999/b",
        "postgresql://u:hunter2@h/b?no_such=hunter2",
        "postgresql://u:hunter2@h/b?connect_timeout=hunter2",
    ] {
        let error = invocation(&line(bad)).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        let text = error.to_string();
        assert!(text.contains("--connstr") && !text.contains("hunter2"), "{text}");
    }
    let good = options(&line("postgres://u:hunter2@h/b?options=-c%20x%3D1"));
    assert_eq!(good.connstr.config().get_options(), Some("-c x=1"));
    assert!(!format!("{good:?}").contains("hunter2"));
    refused(&format!("{FULL} --filecache-connstr nonsense"), "--filecache-connstr");
}

#[test]
fn values_are_judged_before_anything_is_touched() {
    for bad in ["Upper", "digit1", "a-b", "a;b"] {
        refused(&format!("{FULL} --privileged-role-name {bad}"), "--privileged-role-name");
    }
    for bad in ["http://e/?a=b", "nonsense", "mailto:x", "http://e/#a"] {
        refused(&format!("{FULL} -r {bad}"), "--remote-ext-base-url");
    }
    for bad in ["nonsense", "ftp://h", "http://h/?q", "http://h/#f"] {
        refused(&format!("-D /d -C postgresql://a@h/b -i x -p {bad}"), "--control-plane-uri");
    }
    for bad in ["/", "/data/.."] {
        refused(&format!("-D {bad} -C postgresql://a@h/b -i x -c /c"), "--pgdata");
    }
    refused(&format!("{FULL} --crash-linger 5"), "unit");
    refused(&format!("{FULL} --restart always"), "on-failure");
    refused(&format!("{FULL} --vm-monitor-addr nowhere"), "--vm-monitor-addr");
    refused(&format!("{FULL} --lakebase-mode"), "--lakebase-mode");
    refused(&format!("{FULL} --idle-ignores sleep"), "idle-sessions");
}

#[test]
fn our_own_flags() {
    let options = options(&format!(
        "{FULL} --user nobody --restart on-failure --crash-linger 5s --overwrite-foreign-pgdata --journal /j \
         --cache-dir /cache --idle-ignores walsenders,autovacuum --idle-ignores statistics"
    ));
    assert_eq!(options.idle_ignores, [Source::Walsenders, Source::Autovacuum, Source::Statistics]);
    assert_eq!(options.user, "nobody");
    assert_eq!(options.restart, RestartPolicy::OnFailure);
    assert_eq!(options.crash_linger, Duration::from_secs(5));
    assert!(options.overwrite_foreign_pgdata);
    assert_eq!(options.journal.as_deref(), Some(Path::new("/j")));
    assert_eq!(options.cache_dir, Path::new("/cache"));
}

#[test]
fn sub_commands() {
    let Ok(Invocation::Check { file, json: true }) = invocation("check --json a.json") else { panic!() };
    assert_eq!(file, Path::new("a.json"));
    let Ok(Invocation::Plan(plan)) = invocation("plan a.json") else { panic!() };
    assert_eq!((plan.form, plan.all), (plan::Form::People, false));
    assert!(format!("{:?}", plan.target).contains("http://127.0.0.1:3080"), "{:?}", plan.target);
    let line = "plan - -C postgresql://a:hunter2@h/b --sql --all --privileged-role-name some_role";
    let Ok(Invocation::Plan(plan)) = invocation(line) else { panic!() };
    assert_eq!((plan.form, plan.all), (plan::Form::Sql, true));
    assert!(
        matches!(&plan.target, plan::Target::Server { privileged_role, .. } if privileged_role == "some_role")
    );
    assert!(!format!("{plan:?}").contains("hunter2"));
    let diagram = |line: &str| match invocation(line) {
        Ok(Invocation::Diagram { slice, format }) => (slice, format),
        other => panic!("{other:?}"),
    };
    assert_eq!(diagram("diagram"), (Slice::Overview, Format::Mermaid));
    for slice in Slice::ALL {
        assert_eq!(diagram(&format!("diagram --slice {slice} --format table")), (slice, Format::Table));
    }
    let Ok(Invocation::Replay { journal }) = invocation("replay j.jsonl") else { panic!() };
    assert_eq!(journal, Path::new("j.jsonl"));
    refused("check", "<FILE>");
    assert_eq!(invocation("--help").unwrap_err().exit_code(), 0);
    assert_eq!(invocation("--version").unwrap_err().exit_code(), 0);
}

#[test]
fn exit_codes_are_distinct_and_listed_in_the_help() {
    let all = [
        ExitCode::Ok,
        ExitCode::Failure,
        ExitCode::Usage,
        ExitCode::BadJournal,
        ExitCode::Unreadable,
        ExitCode::NoPostgres,
        ExitCode::Internal,
        ExitCode::UnsupportedPostgres,
        ExitCode::PortInUse,
        ExitCode::PgdataRefused,
        ExitCode::FinalSyncFailed,
        ExitCode::ControlPlane,
        ExitCode::Killed,
        ExitCode::NoPrivilege,
        ExitCode::BadConfig,
    ];
    let codes: std::collections::BTreeSet<u8> = all.iter().map(|exit| exit.code()).collect();
    assert_eq!(codes.len(), all.len());
    let help = invocation("--help").unwrap_err().to_string();
    for code in codes {
        assert!(help.split_whitespace().any(|word| word == code.to_string()), "{code}");
    }
    assert_eq!(ExitCode::Postgres(3).code(), 3);
    // The one number with two meanings: see the sub-command's help.
    assert_eq!(ExitCode::Changes.code(), ExitCode::Usage.code());
    let help = invocation("plan --help").unwrap_err().to_string();
    assert!(help.contains("2 there is something to change (or bad arguments"), "{help}");
}
