//! Progress while an answer takes its time.

use std::time::{Duration, Instant};

use reqwest::StatusCode;

use super::super::Streams;
use super::super::client::{ClientError, Compute};
use super::show;
use crate::limits;

/// Waits for the answer, and tells on standard error what the compute is doing meanwhile and for how long it has: in
/// place on a terminal, otherwise a line for each change.
pub(super) async fn with_progress<T>(
    compute: &Compute,
    what: &str,
    answer: impl Future<Output = T>,
    streams: &mut Streams<'_>,
) -> T {
    let begun = Instant::now();
    let mut answer = std::pin::pin!(answer);
    let mut told = None;
    loop {
        let look = async {
            tokio::time::sleep(limits::WATCH).await;
            match compute.status().await {
                Ok((status, _)) => show::doing(&status),
                Err(ClientError::Refused { status: StatusCode::SERVICE_UNAVAILABLE, error, .. }) => {
                    show::delayed(error.as_deref())
                }
                // There is only the time to be told.
                Err(_) => "no answer".to_owned(),
            }
        };
        tokio::select! {
            biased;
            answer = &mut answer => {
                if streams.err_is_terminal && told.is_some() {
                    let _ = write!(streams.err, "\r\x1b[K");
                }
                return answer;
            }
            doing = look => {
                // Where nobody reads, nothing is lost.
                let _ = if streams.err_is_terminal {
                    write!(streams.err, "\r\x1b[K{what}: {doing} ({})", elapsed(begun.elapsed()))
                        .and_then(|()| streams.err.flush())
                } else if told.as_ref() != Some(&doing) {
                    writeln!(streams.err, "{what}: {doing} (after {})", elapsed(begun.elapsed()))
                } else {
                    Ok(())
                };
                told = Some(doing);
            }
        }
    }
}

/// A stretch of time as people say it.
pub(super) fn elapsed(time: Duration) -> String {
    let seconds = time.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0..10) => format!("{:.1} s", time.as_secs_f64()),
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds:02} s"),
        (hours, minutes, _) => format!("{hours} h {minutes:02} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_as_exact_as_they_are_short() {
        for (millis, text) in [
            (0, "0.0 s"),
            (1_250, "1.2 s"),
            (59_900, "59 s"),
            (125_000, "2 min 05 s"),
            (7_500_000, "2 h 05 min"),
        ] {
            assert_eq!(elapsed(Duration::from_millis(millis)), text);
        }
    }
}
