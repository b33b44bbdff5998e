//! `compute_ctl diagram`: the state machine, drawn from the machine itself.

use std::io::{self, Write};

use compute_states::diagram::{self, Format, Slice};

use super::ExitCode;

/// Prints a part of the machine in a form.
pub fn run(slice: Slice, format: Format, out: &mut dyn Write) -> ExitCode {
    let text = diagram::render(slice, format);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_every_slice_names_its_statuses() {
        for format in Format::ALL {
            let mut out = Vec::new();
            assert_eq!(run(Slice::Refresh, format, &mut out), ExitCode::Ok);
            let text = String::from_utf8(out).expect("it is text");
            assert!(text.contains("RefreshConfigurationPending"), "{format:?}: {text}");
        }
    }
}
