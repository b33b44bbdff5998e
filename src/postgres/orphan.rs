//! A server whose supervisor was killed.
//!
//! Whoever is killed by SIGKILL cannot end what it supervises, and in a container or a unit something else does.
//! Where nothing does, the server lives on, and nobody would ever start another one on its directory. Whoever has
//! claimed the directory knows that no supervisor lives, and a server that carries our mark in its environment had
//! one: it is stopped, in order if it lets itself be. A server that somebody else has started is left alone.

use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use tokio::time::timeout;

use super::pgdata::DataDir;
use super::postmaster::TAG;
use super::proctable::{self, Stat};
use crate::limits;

/// What is tried, and for how long: a shutdown checkpoint, none, and no question.
const LADDER: [(Signal, Duration); 3] = [
    (Signal::INT, limits::ORPHAN_FAST),
    (Signal::QUIT, limits::ORPHAN_IMMEDIATE),
    (Signal::KILL, limits::ORPHAN_KILL),
];

/// Ends the server on a directory if it is an orphan of ours, with all its processes. Whether anything is left, and
/// whatever else may live there, is found out by [`DataDir::ensure_no_server`]. Must be called inside the runtime.
pub async fn end_orphan(pgdata: &Arc<DataDir>) {
    let here = living(pgdata).await;
    // File systems that are shared between machines do not all share locks: what has a supervisor is no orphan.
    let supervised = |stat: &Stat| Stat::of(stat.ppid).is_some_and(|parent| parent.comm == "compute_ctl");
    let orphaned = |stat: &&Stat| stat.has_variable(TAG) && !supervised(stat);
    let Some(postmaster) = here.iter().find(orphaned) else { return };
    tracing::warn!(
        data_directory = %pgdata.path().display(),
        "process {} is a PostgreSQL server whose compute_ctl was killed: it is stopped first",
        postmaster.pid
    );
    for (signal, patience) in LADDER {
        // Backends tell themselves from the postmaster by nothing but their parent, and only the last rung is
        // theirs as well: a postmaster that is killed may leave those that do not look.
        let all = living(pgdata).await;
        let addressed = if signal == Signal::KILL { &all[..] } else { std::slice::from_ref(postmaster) };
        for stat in addressed {
            proctable::signal(stat, signal);
            // Its supervisor may have been killed behind a shut door, and one that is stopped hears nothing else.
            proctable::signal(stat, Signal::CONT);
        }
        if timeout(patience, proctable::all_ended(&all)).await.is_ok() {
            tracing::info!(?signal, "the orphaned server has ended");
            return;
        }
    }
}

/// The servers' processes that work in the directory.
async fn living(pgdata: &Arc<DataDir>) -> Vec<Stat> {
    let id = pgdata.id();
    let looked = tokio::task::spawn_blocking(move || {
        let here =
            |stat: &Stat| !stat.is_dead() && id.is_cwd_of(stat.pid) == Some(true) && stat.is_postgres();
        proctable::all().into_iter().filter(here).collect()
    });
    // A panic is a bug; what lives there is then found by whoever asks next.
    looked.await.unwrap_or_default()
}
