//! `compute_ctl diagram`: the state machine, drawn from the machine itself.

use std::io::{self, Write};

use compute_states::diagram::{self, Format, Slice};

use super::{DiagramFormat, DiagramSlice, ExitCode};

/// Prints a part of the machine in a form.
pub fn run(slice: DiagramSlice, format: DiagramFormat, out: &mut dyn Write) -> ExitCode {
    let text = diagram::render(Slice::from(slice), Format::from(format));
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::Ok,
        // A reader that has seen enough (`| head`) is no failure.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::Ok,
        Err(error) => {
            tracing::error!(%error, "the diagram could not be printed");
            ExitCode::Failure
        }
    }
}

impl From<DiagramSlice> for Slice {
    fn from(slice: DiagramSlice) -> Self {
        match slice {
            DiagramSlice::Overview => Slice::Overview,
            DiagramSlice::Startup => Slice::Startup,
            DiagramSlice::Reconfiguration => Slice::Reconfiguration,
            DiagramSlice::Refresh => Slice::Refresh,
            DiagramSlice::Termination => Slice::Termination,
            DiagramSlice::Failure => Slice::Failure,
        }
    }
}

impl From<DiagramFormat> for Format {
    fn from(format: DiagramFormat) -> Self {
        match format {
            DiagramFormat::Mermaid => Format::Mermaid,
            DiagramFormat::Dot => Format::Dot,
            DiagramFormat::Json => Format::Json,
            DiagramFormat::Table => Format::Table,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_every_slice_names_its_statuses() {
        for format in [DiagramFormat::Mermaid, DiagramFormat::Dot, DiagramFormat::Json, DiagramFormat::Table]
        {
            let mut out = Vec::new();
            assert_eq!(run(DiagramSlice::Refresh, format, &mut out), ExitCode::Ok);
            let text = String::from_utf8(out).expect("it is text");
            assert!(text.contains("RefreshConfigurationPending"), "{format:?}: {text}");
        }
    }
}
