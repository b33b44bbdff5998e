//! The spans of what a compute is at: what traces show of it, and what the lines of the log are said in.
//!
//! A start is `start_compute`, a later change `reconfigure`; the work done for either is inside, and so is the
//! start of the server, as `start_postgres`. They are inside the request that asked for it, which may have to wait for
//! its turn. None of them is kept any longer than what it stands for: the server that a start has brought about, its
//! monitor and whatever follows are not part of it. Work may be done in the span of the change itself, which to traces
//! ends with the last of it; the server's start is not, so that it ends when the server is ready.

use compute_states::{ComputeStatus, Event, RequestId};
use tracing::Span;

use super::world::Work;
use crate::telemetry::{Stage, trace};

#[derive(Debug)]
pub(super) struct Spans {
    /// Of the last request that may become a change.
    request: Option<(RequestId, Span)>,
    /// Of the start or the change that is under way.
    change: Span,
    /// Of the server's start, and of the wait for it.
    postgres: Option<(Span, Span)>,
    /// Where the server is started, in words.
    pgdata: String,
}

impl Spans {
    pub(super) fn new(pgdata: String) -> Self {
        Spans { request: None, change: Span::none(), postgres: None, pgdata }
    }

    /// A request has come, in this span. One that cannot become a change is not kept open for it.
    pub(super) fn asked(&mut self, event: &Event, span: Span) {
        if let Event::ConfigureRequested { request, .. } | Event::PromoteRequested { request, .. } = *event {
            self.request = Some((request, span));
        }
    }

    /// A request was answered, so that nothing more belongs to it.
    pub(super) fn answered(&mut self, request: RequestId) {
        self.request.take_if(|(asked, _)| *asked == request);
    }

    /// The status has changed.
    pub(super) fn enter(&mut self, status: ComputeStatus) {
        let parent = self.request.as_ref().map(|(_, span)| span.id()).unwrap_or_default();
        self.change = match status {
            ComputeStatus::Init => {
                let span = tracing::info_span!(parent: parent.clone(), "start_compute");
                if parent.is_none() {
                    trace::continue_environment(&span);
                }
                span
            }
            ComputeStatus::Configuration | ComputeStatus::RefreshConfiguration => {
                tracing::info_span!(parent: parent, "reconfigure")
            }
            _ => Span::none(),
        };
    }

    /// The start has come to another stage.
    pub(super) fn reach(&mut self, stage: Stage) {
        self.postgres = (stage == Stage::Starting).then(|| {
            let start = tracing::info_span!(parent: &self.change, "start_postgres");
            let wait = tracing::info_span!(parent: &start, "wait_for_postgres", pgdata = self.pgdata);
            (start, wait)
        });
    }

    /// The span of a piece of work.
    pub(super) fn of(&self, work: Work) -> Span {
        let within = &self.change;
        match work {
            Work::PrepareStorage { .. } => tracing::info_span!(parent: within, "prepare_pgdata"),
            Work::Promote { .. } => {
                let parent = self.request.as_ref().map(|(_, span)| span.id()).unwrap_or_default();
                tracing::info_span!(parent: parent, "promote")
            }
            Work::FetchSpec { .. } => tracing::info_span!(parent: None, "fetch_spec"),
            Work::CheckIdle { .. } => tracing::info_span!(parent: None, "check_idle"),
            Work::FinalSync { .. } => tracing::info_span!(parent: None, "sync_safekeepers"),
            // What there is to tell of it depends on the spec, which the world knows.
            Work::ApplySpec { .. } => within.clone(),
            // Nothing is told of them.
            Work::WarmUp | Work::ResolveSpec { .. } | Work::Sweep => within.clone(),
        }
    }
}
