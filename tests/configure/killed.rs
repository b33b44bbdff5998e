//! Cut short at every place there is: the connection, the server, the program.

use std::collections::BTreeSet;
use std::error::Error;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, LazyLock};

use compute_ctl::catalog::{self, Applied, ConnectionSettings, Options, Profile, migrations};
use compute_ctl::secret::Secret;
use compute_ctl::spec::document::ComputeSpec;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio_util::sync::CancellationToken;

use crate::change::{STEPS, before, client, column, goal, picture, wait};
use crate::proxy::{Cut, Proxy};
use crate::support::node::{Place, eventually};
use crate::support::pg::{ADMIN, Server, command, restore};

/// Set to have every boundary tried, also those that are much alike.
const ALL: &str = "COMPUTE_CTL_TEST_ALL_BOUNDARIES";

/// Of boundaries that are much alike, each so many are tried.
const SPARSELY: usize = 5;

/// Boundaries at which the program is killed.
const SAMPLES: usize = 8;

static GOAL: LazyLock<ComputeSpec> = LazyLock::new(|| serde_json::from_value(goal()).unwrap());

fn options() -> Options {
    Options { privileged_role: "neon_superuser".to_owned(), profile: Profile::Standard, concurrency: 1 }
}

async fn session(socket: &Path, port: u16) -> Result<catalog::Connection, catalog::ConnectError> {
    let connstr = format!("host='{}' port={port} user={ADMIN} dbname=postgres", socket.display());
    catalog::connect(&ConnectionSettings::new(&Secret::new(connstr), Profile::Standard)?).await
}

/// Applies the change, migrations included. `half_way` is called before these.
async fn apply(socket: &Path, port: u16, half_way: impl FnOnce()) -> Result<Applied, Box<dyn Error>> {
    let connection = session(socket, port).await?;
    let token = CancellationToken::new();
    let mut applied = catalog::apply(&connection, &GOAL, &options(), &token).await?;
    half_way();
    migrations::run(&connection, &std::mem::take(&mut applied.migrations), &token).await?;
    Ok(applied)
}

/// Applies the change to a server, however far it has come before: one apply completes it, after which there is
/// nothing to do. What the server is like then.
async fn settle(server: &Server) -> BTreeSet<String> {
    let (socket, port) = (server.socket_dir(), server.port());
    apply(socket, port, || ()).await.unwrap();
    assert_eq!(apply(socket, port, || ()).await.unwrap(), Applied::default(), "nothing is left to do");
    picture(socket, port).await
}

#[derive(Clone, Copy, Debug)]
enum Blow {
    /// The session breaks before the request is sent.
    Connection,
    /// The postmaster is killed while the request is being executed.
    Server,
}

/// What an uninterrupted apply asks, and what it comes to.
struct Whole {
    /// How many requests only read, and how many come before the first migration.
    phases: [usize; 2],
    requests: Vec<String>,
    picture: BTreeSet<String>,
}

impl Whole {
    /// The requests to stop at: each that changes something, which is a whole transaction or what cannot be in one,
    /// and some of those that only read, and of migrations, since one is like the other.
    fn boundaries(&self) -> Vec<usize> {
        let all = std::env::var_os(ALL).is_some();
        let [reading, applied] = self.phases;
        let alike = |at: usize| at < reading || at >= applied;
        (0..self.requests.len()).filter(|at| all || !alike(*at) || at % SPARSELY == 0).collect()
    }
}

fn uninterrupted(template: &Server) -> Whole {
    let server = template.copy();
    let (port, proxy) = (server.port(), Proxy::start(server.socket_dir(), server.port(), None));
    wait(async {
        let connection = session(proxy.dir(), port).await.unwrap();
        let token = CancellationToken::new();
        let (_, plan) = catalog::preview(&connection, &GOAL, &options(), &token).await.unwrap();
        let actions: BTreeSet<&str> = plan.steps().iter().map(catalog::Step::action).collect();
        assert_eq!(actions.into_iter().collect::<Vec<_>>(), STEPS, "each kind of step is in it");
        let reading = proxy.requests().len();
        let mut applied = 0;
        apply(proxy.dir(), port, || applied = proxy.requests().len() - reading).await.unwrap();
        let requests = proxy.requests().split_off(reading);
        Whole { phases: [reading, applied], requests, picture: settle(&server).await }
    })
}

/// What a server is like that was struck once, and on which the change was applied again.
fn struck(server: &mut Server, at: usize, blow: Blow) -> BTreeSet<String> {
    let postmaster = server.pid();
    let cut = match blow {
        Blow::Connection => Cut { at, passed_on: false, act: Box::new(|| ()) },
        Blow::Server => {
            let act = move || kill(postmaster, Signal::SIGKILL).unwrap();
            Cut { at, passed_on: true, act: Box::new(act) }
        }
    };
    let proxy = Proxy::start(server.socket_dir(), server.port(), Some(cut));
    let first = wait(apply(proxy.dir(), server.port(), || ()));
    assert!(first.is_err(), "it is cut short");
    if matches!(blow, Blow::Server) {
        server.again();
    }
    wait(settle(server))
}

#[test]
fn whatever_an_apply_was_doing_the_next_one_completes_it() {
    let template = before();
    let whole = uninterrupted(&template);
    let boundaries = whole.boundaries();
    let (count, requests) = (boundaries.len(), whole.requests.len());
    let steps: String = whole.requests.concat();
    for told in
        ["BEGIN", "CREATE DATABASE", "IS_TEMPLATE false", "DROP DATABASE", "REASSIGN OWNED", "migration_id"]
    {
        assert!(steps.contains(told), "{told} is among {:#?}", whole.requests);
    }
    let work = boundaries.into_iter().flat_map(|at| [Blow::Connection, Blow::Server].map(|blow| (at, blow)));
    let work = Mutex::new(work);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from).min(4) {
            scope.spawn(|| {
                let mut server = template.copy();
                loop {
                    let next = work.lock().unwrap().next();
                    let Some((at, blow)) = next else { break };
                    template.copy_to(&mut server);
                    let picture = struck(&mut server, at, blow);
                    let differing: Vec<_> = picture.symmetric_difference(&whole.picture).collect();
                    let sql = &whole.requests[at];
                    assert!(differing.is_empty(), "{blow:?} at {at} of {requests}, {sql}: {differing:#?}");
                }
            });
        }
    });
    println!("stopped at {count} of {requests} requests, by {:?} and {:?}", Blow::Connection, Blow::Server);
}

/// Waits for the end of a change under way, migrations included.
fn settled(place: &Place) -> BTreeSet<String> {
    wait(async {
        let client = client(place.path(), place.postgres, "postgres").await;
        eventually_done(&client).await;
        picture(place.path(), place.postgres).await
    })
}

/// Each question is a round trip; the limit only turns a hang into a failure.
async fn eventually_done(client: &tokio_postgres::Client) {
    let done = "SELECT id::text FROM neon_migration.migration_id WHERE id = 12";
    let asking = async { while column(client, done).await.is_empty() {} };
    tokio::time::timeout(crate::support::node::DEADLINE, asking).await.expect("migrations end");
}

#[test]
fn a_killed_program_leaves_what_the_next_start_completes() {
    let template = before();
    let mut place = Place::new();
    let mut spec = place.kept_spec();
    for (name, value) in goal().as_object().unwrap() {
        match name.as_str() {
            "cluster" => {
                for list in ["roles", "databases"] {
                    spec["cluster"][list] = value[list].clone();
                }
                let own = value["settings"].as_array().unwrap().iter().cloned();
                spec["cluster"]["settings"].as_array_mut().unwrap().extend(own);
            }
            _ => spec[name] = value.clone(),
        }
    }
    place.configure(&spec);
    let through = |dir: &Path| {
        format!("postgresql:///postgres?user={ADMIN}&host={}&port={}", dir.display(), place.postgres)
    };
    // Over the socket, where the template asks for no password.
    let direct = through(place.path());
    let reset = |place: &Place| restore(&template.data(), &place.pgdata());

    reset(&place);
    let proxy = Proxy::start(place.path(), place.postgres, None);
    let proxied = through(proxy.dir());
    place.connstr.clone_from(&proxied);
    let node = place.start(&[]);
    node.wait_status("running");
    let expected = settled(&place);
    node.terminate();
    drop(node);
    let requests = proxy.requests().len();
    drop(proxy);
    assert!(requests > 3 * SAMPLES, "there are many places to stop at: {requests}");

    let every = if std::env::var_os(ALL).is_some() { 1 } else { requests / SAMPLES };
    for at in (0..requests).step_by(every) {
        reset(&place);
        let program = Arc::new(AtomicI32::new(0));
        let victim = program.clone();
        let act = move || {
            let pid = eventually("the program's number is known", || {
                Some(victim.load(Ordering::SeqCst)).filter(|pid| *pid > 0)
            });
            kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        };
        let cut = Cut { at, passed_on: at % 2 == 0, act: Box::new(act) };
        let proxy = Proxy::start(place.path(), place.postgres, Some(cut));
        place.connstr.clone_from(&proxied);
        let node = place.start(&[]);
        program.store(node.pid, Ordering::SeqCst);
        assert_eq!(node.killed_by(), Some(Signal::SIGKILL as i32), "at {at}");
        drop(node);
        // What ends a supervisor in this way ends what it supervises, without leaving it the time for a checkpoint.
        let stop =
            command("pg_ctl").args(["stop", "-w", "-m", "immediate", "-D"]).arg(place.pgdata()).output();
        assert!(stop.unwrap().status.success());
        eventually("all of Postgres has gone", || place.processes().is_empty().then_some(()));
        drop(proxy);
        place.connstr.clone_from(&direct);
        let node = place.start(&[]);
        node.wait_status("running");
        let picture = settled(&place);
        let differing: Vec<_> = picture.symmetric_difference(&expected).collect();
        assert!(differing.is_empty(), "killed at {at} of {requests}: {differing:#?}\n{}", node.log());
        node.terminate();
    }
}
