//! `pg_hba.conf`: the line that lets clients in with a password.

use std::path::Path;

use super::conf::{WriteError, append_line};

/// Password logins for everyone from anywhere. `md5` also accepts SCRAM verifiers; those of roles without a
/// password are refused. Byte for byte the original's line, so that a directory it has prepared is not given
/// a second one.
pub const PASSWORD_LOGINS: &str = "host\tall\t\tall\t\tall\t\tmd5";

/// Adds [`PASSWORD_LOGINS`] to the `pg_hba.conf` of a data directory, unless it is there. Earlier lines win,
/// so local trust lines of `initdb` or of a base backup stay in force.
///
/// # Errors
/// [`WriteError`] names the file.
pub fn allow_password_logins(pgdata: &Path) -> Result<(), WriteError> {
    append_line(&pgdata.join("pg_hba.conf"), PASSWORD_LOGINS).map(drop)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_line_is_added_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pg_hba.conf");
        fs::write(&path, "local all all trust").unwrap();
        allow_password_logins(dir.path()).unwrap();
        allow_password_logins(dir.path()).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, "local all all trust\nhost\tall\t\tall\t\tall\t\tmd5");
    }

    #[test]
    fn a_missing_file_is_made() {
        let dir = tempfile::tempdir().unwrap();
        allow_password_logins(dir.path()).unwrap();
        let text = fs::read_to_string(dir.path().join("pg_hba.conf")).unwrap();
        assert_eq!(text, PASSWORD_LOGINS);
    }
}
