//! Whether the config can be read again.
//!
//! At the start it is read by whoever starts the program. Root reads everything, and privileges are dropped after that,
//! but a refresh, whenever it comes, reads with those that are left.

use std::path::Path;

use nix::unistd::{AccessFlags, access};

use crate::control_plane::Source;

/// Warns of a config that refreshes will not be able to read, after privileges were dropped.
pub(super) fn warn_unless_readable(source: Option<&Source>, user: &str) {
    if let Some(Source::File { path, .. }) = source
        && let Some(warning) = unreadable(path, user)
    {
        tracing::warn!("{warning}");
    }
}

/// Asked and not tried: to open a pipe takes away what is in it, or waits for somebody who writes.
fn unreadable(path: &Path, user: &str) -> Option<String> {
    let error = access(path, AccessFlags::R_OK).err()?;
    Some(format!(
        "{} was read at the start and cannot be read again ({}), so refreshes will fail: let user {user} read the \
         file and enter the directories above it",
        path.display(),
        error.desc()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_that_cannot_be_read_again_is_named_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        let warning = unreadable(&path, "postgres").unwrap();
        for word in [path.to_str().unwrap(), "No such file", "refreshes will fail", "let user postgres read"]
        {
            assert!(warning.contains(word), "{word:?} not in {warning}");
        }
        std::fs::write(&path, "{}").unwrap();
        assert_eq!(unreadable(&path, "postgres"), None);
    }
}
