//! Renders a walk of the machine: Mermaid, DOT, JSON, and the table of every cell.
//!
//! Nothing here knows what the machine does. Statuses and arrows come from [`explore::walk`], labels are the
//! `Display` of [`Cause`].

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Write as _};
use core::str::FromStr;

use crate::event::EventKind;
use crate::explore::{self, Walk};
use crate::status::ComputeStatus;
use crate::verdict::Cause;

mod json;
pub mod lists;
mod table;

/// Which part of the machine is drawn. The whole is too much to follow with the eye.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Slice {
    /// Every arrow between two statuses.
    Overview,
    /// From the spawn of the process to `Running`.
    Startup,
    /// `/configure` on a running compute.
    Reconfiguration,
    /// `/refresh_configuration`.
    Refresh,
    /// `/promote`, which goes on beside the status.
    Promotion,
    /// Ways to `Terminated`.
    Termination,
    /// Ways to and from `Failed`, but for terminations.
    Failure,
}

impl Slice {
    /// All of them.
    pub const ALL: [Slice; 7] = [
        Slice::Overview,
        Slice::Startup,
        Slice::Reconfiguration,
        Slice::Refresh,
        Slice::Promotion,
        Slice::Termination,
        Slice::Failure,
    ];

    /// Its name, as on the command line and of its file.
    pub fn name(self) -> &'static str {
        match self {
            Slice::Overview => "overview",
            Slice::Startup => "startup",
            Slice::Reconfiguration => "reconfiguration",
            Slice::Refresh => "refresh",
            Slice::Promotion => "promotion",
            Slice::Termination => "termination",
            Slice::Failure => "failure",
        }
    }

    /// Whether an arrow belongs to it.
    fn shows(self, from: ComputeStatus, to: ComputeStatus, cause: Cause) -> bool {
        use ComputeStatus::{
            Configuration, ConfigurationPending, Empty, Failed, Init, RefreshConfiguration,
            RefreshConfigurationPending, Running, Terminated, TerminationPendingFast,
            TerminationPendingImmediate,
        };
        // True of every status with a Postgres, and of no interest to where the compute goes.
        let incidental = matches!(
            cause,
            Cause::ReloadForwarded | Cause::ActivityNoted | Cause::RestartForgiven | Cause::LateExit
        );
        // Goes on beside the status, and has a slice of its own.
        let beside = matches!(
            cause,
            Cause::PromoteRequested
                | Cause::PromotionQueued
                | Cause::PromotionJoined
                | Cause::PromotionKept
                | Cause::ServerPromoted
                | Cause::Promoted
                | Cause::PromotionFailed
        );
        // The look before a termination, of which only the result leads anywhere.
        let looks = matches!(
            cause,
            Cause::IdleCheckRequested | Cause::IdleCheckJoined | Cause::IdleCheckFailed | Cause::FoundBusy
        );
        if from == to && looks {
            return self == Slice::Termination;
        }
        if from == to && (incidental || (beside && self != Slice::Promotion)) {
            return false;
        }
        let ends =
            |status| matches!(status, TerminationPendingFast | TerminationPendingImmediate | Terminated);
        let refreshes = |status| matches!(status, RefreshConfigurationPending | RefreshConfiguration);
        let by_postgres = matches!(cause, Cause::PostgresCrashed | Cause::PostgresStopped);
        match self {
            Slice::Overview => from != to,
            Slice::Startup => {
                let starts = matches!(from, Empty | ConfigurationPending | Init)
                    && matches!(to, Empty | ConfigurationPending | Init | Running | Failed);
                (starts || to == Init) && !by_postgres && cause != Cause::RefreshLatched
            }
            Slice::Reconfiguration => {
                let between =
                    |status| matches!(status, Running | ConfigurationPending | Configuration | Failed);
                let own = |status| matches!(status, ConfigurationPending | Configuration);
                between(from) && between(to) && (own(from) || own(to)) && !by_postgres
            }
            Slice::Refresh => {
                let detached = cause == Cause::Detached;
                let latched = cause == Cause::RefreshLatched;
                let touches = (refreshes(from) || refreshes(to)) && !ends(to) && !by_postgres;
                touches || detached || latched
            }
            Slice::Promotion => {
                beside && cause != Cause::PromotionKept
                    || matches!(cause, Cause::PromotedUnapplied | Cause::RefreshOvertaken)
            }
            Slice::Termination => ends(to),
            Slice::Failure => (from == Failed || to == Failed) && !ends(to),
        }
    }

    /// Whether the start of the process is drawn.
    fn shows_start(self) -> bool {
        matches!(self, Slice::Overview | Slice::Startup)
    }

    /// Whether the end of the process in this status is drawn.
    fn shows_end(self, status: ComputeStatus) -> bool {
        match self {
            Slice::Overview => true,
            Slice::Termination => status == ComputeStatus::Terminated,
            Slice::Failure => status == ComputeStatus::Failed,
            Slice::Startup | Slice::Reconfiguration | Slice::Refresh | Slice::Promotion => false,
        }
    }
}

impl fmt::Display for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// In what language.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Format {
    /// Mermaid's `stateDiagram-v2`.
    Mermaid,
    /// Graphviz.
    Dot,
    /// One object: states, transitions with event and cause.
    Json,
    /// Markdown: every cell of the statuses in the slice.
    Table,
}

impl Format {
    /// All of them.
    pub const ALL: [Format; 4] = [Format::Mermaid, Format::Dot, Format::Json, Format::Table];

    /// Its name, as on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Format::Mermaid => "mermaid",
            Format::Dot => "dot",
            Format::Json => "json",
            Format::Table => "table",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is none of a slice or a format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownName;

impl fmt::Display for UnknownName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("unknown name")
    }
}

impl core::error::Error for UnknownName {}

impl FromStr for Slice {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        Slice::ALL.into_iter().find(|slice| slice.name() == name).ok_or(UnknownName)
    }
}

impl FromStr for Format {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        Format::ALL.into_iter().find(|format| format.name() == name).ok_or(UnknownName)
    }
}

/// Walks the machine and draws a slice of it. The text ends in a line feed.
pub fn render(slice: Slice, format: Format) -> String {
    draw(&explore::walk(), slice, format)
}

/// As [`render`], of a walk that was made already.
pub fn draw(walk: &Walk, slice: Slice, format: Format) -> String {
    let drawing = Drawing::of(walk, slice);
    match format {
        Format::Mermaid => mermaid(&drawing),
        Format::Dot => dot(&drawing),
        Format::Json => json::render(&drawing),
        Format::Table => table::render(walk, &drawing),
    }
}

/// What a slice shows of a walk.
struct Drawing {
    slice: Slice,
    arrows: BTreeMap<(ComputeStatus, ComputeStatus), BTreeSet<(EventKind, Cause)>>,
    starts: bool,
    ends: Vec<ComputeStatus>,
}

impl Drawing {
    fn of(walk: &Walk, slice: Slice) -> Self {
        let mut arrows = BTreeMap::new();
        for (&(from, to), reasons) in &walk.arrows {
            let shown: BTreeSet<_> =
                reasons.iter().copied().filter(|(_, cause)| slice.shows(from, to, *cause)).collect();
            if !shown.is_empty() {
                arrows.insert((from, to), shown);
            }
        }
        let ends = walk.ends.iter().copied().filter(|status| slice.shows_end(*status)).collect();
        Drawing { slice, arrows, starts: slice.shows_start(), ends }
    }

    /// The statuses in it, in the order of a compute's life.
    fn statuses(&self) -> Vec<ComputeStatus> {
        let shown = |status: &ComputeStatus| {
            self.arrows.keys().any(|(from, to)| from == status || to == status)
                || (self.starts && *status == ComputeStatus::Empty)
                || self.ends.contains(status)
        };
        ComputeStatus::ALL.into_iter().filter(shown).collect()
    }

    /// Arrows in the order of a compute's life, each with what its causes say.
    fn labelled(&self) -> Vec<(ComputeStatus, ComputeStatus, Vec<String>)> {
        let order = |status: ComputeStatus| ComputeStatus::ALL.iter().position(|known| *known == status);
        let mut arrows: Vec<_> = self
            .arrows
            .iter()
            .map(|(&(from, to), reasons)| {
                let causes: BTreeSet<Cause> = reasons.iter().map(|(_, cause)| *cause).collect();
                (from, to, causes.into_iter().map(|cause| alloc::format!("{cause}")).collect())
            })
            .collect();
        arrows.sort_by_key(|&(from, to, _)| (order(from), order(to)));
        arrows
    }
}

const SPAWNED: &str = "compute spawned";
const EXITED: &str = "compute exited";

fn mermaid(drawing: &Drawing) -> String {
    let mut out = String::from("stateDiagram-v2\n");
    if drawing.starts {
        line(&mut out, format_args!("    [*] --> {}: {SPAWNED}", ComputeStatus::Empty.name()));
    }
    for (from, to, labels) in drawing.labelled() {
        let label = labels.join("<br/>");
        line(&mut out, format_args!("    {} --> {}: {label}", from.name(), to.name()));
    }
    for status in &drawing.ends {
        line(&mut out, format_args!("    {} --> [*]: {EXITED}", status.name()));
    }
    out
}

fn dot(drawing: &Drawing) -> String {
    let mut out = String::new();
    line(&mut out, format_args!("digraph {} {{", drawing.slice));
    line(&mut out, format_args!("    node [shape=box, style=rounded];"));
    if drawing.starts {
        line(&mut out, format_args!("    start [shape=point];"));
        line(&mut out, format_args!("    start -> {} [label=\"{SPAWNED}\"];", ComputeStatus::Empty.name()));
    }
    for (from, to, labels) in drawing.labelled() {
        let label = labels.join("\\n");
        line(&mut out, format_args!("    {} -> {} [label=\"{label}\"];", from.name(), to.name()));
    }
    if !drawing.ends.is_empty() {
        line(&mut out, format_args!("    end [shape=doublecircle, label=\"\"];"));
    }
    for status in &drawing.ends {
        line(&mut out, format_args!("    {} -> end [label=\"{EXITED}\"];", status.name()));
    }
    line(&mut out, format_args!("}}"));
    out
}

/// Writes a line into a string, which cannot fail.
fn line(out: &mut String, text: fmt::Arguments<'_>) {
    let _ = out.write_fmt(text);
    out.push('\n');
}
