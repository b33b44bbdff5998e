//! Finding PostgreSQL on this machine and asking for its version.

mod memory;

use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tokio_util::sync::CancellationToken;

use super::process::{self, RunError};
use crate::limits;

/// The oldest major version served.
pub const OLDEST: u32 = 15;

/// Where Debian and Ubuntu put their versions, one directory each.
const DEBIAN: &str = "/usr/lib/postgresql";

/// Where PostgreSQL's own packages for Red Hat and its kin put theirs, in directories with this prefix.
const REDHAT: (&str, &str) = ("/usr", "pgsql-");

/// Why there is no PostgreSQL to run.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The program named is not there.
    #[error("there is no PostgreSQL server at {path}{}", .searched.as_deref().unwrap_or_default())]
    NotThere {
        /// What was named.
        path: PathBuf,
        /// Where else it was looked for, as the end of the sentence.
        searched: Option<String>,
    },
    /// Nothing was named and nothing was found.
    #[error(
        "found no PostgreSQL server: looked for `postgres` in PATH, asked pg_config and looked in \
         {DEBIAN} and {}/{}*; install one or name it with --pgbin",
        REDHAT.0, REDHAT.1
    )]
    NoneFound,
    /// It could not be run.
    #[error("cannot ask {path} for its version")]
    Run {
        /// The program.
        path: PathBuf,
        /// Why.
        source: RunError,
    },
    /// It ran but is no PostgreSQL we understand.
    #[error("{path} does not answer --version like a PostgreSQL server: {answer:?}")]
    NotPostgres {
        /// The program.
        path: PathBuf,
        /// What it printed, cut.
        answer: String,
    },
    /// Too old.
    #[error("{path} is PostgreSQL {version}; version {OLDEST} or newer is needed")]
    TooOld {
        /// The program.
        path: PathBuf,
        /// Its version.
        version: Version,
    },
}

/// A PostgreSQL version as its programs print it: `15.4`, `16beta1`, `17devel`, with the packager's remark.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Version {
    /// `15` of `15.4`. Data directories are bound to it.
    pub major: u32,
    /// All of it, for instance `15.4 (Debian 15.4-1)`.
    pub text: String,
}

impl Version {
    /// Reads `PostgreSQL 15.4 (Debian 15.4-1)`, also with the program's name before it, as
    /// `postgres --version` has it: `postgres (PostgreSQL) 15.4 (Debian 15.4-1)`.
    pub fn parse(answer: &str) -> Option<Self> {
        let rest = answer.lines().next()?.trim();
        let rest = match rest.split_once("(PostgreSQL) ") {
            Some((_program, rest)) => rest,
            None => rest.strip_prefix("PostgreSQL ")?,
        };
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        Some(Self { major: rest[..digits].parse().ok()?, text: rest.to_owned() })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A PostgreSQL of a served version.
#[derive(Clone, Debug)]
pub struct Installation {
    postgres: PathBuf,
    version: Version,
}

impl Installation {
    /// Finds the server and asks for its version, without a shell.
    ///
    /// `pgbin` is a path, or a bare name looked up in `PATH`. Without it, or with the bare default `postgres`
    /// (which Debian keeps out of `PATH`), these are tried in order until one is of a served version: `PATH`,
    /// the directory `pg_config --bindir` names, the versions in `/usr/lib/postgresql` and `/usr/pgsql-*` from
    /// the newest. If there are only others, the error is about the first that is too old.
    ///
    /// With a `cache` directory the program is asked for its version once, and then only when it has changed.
    pub async fn find(pgbin: Option<&Path>, cache: Option<&Path>) -> Result<Self, InstallError> {
        let path = match pgbin {
            Some(named) if named.components().count() > 1 || named.is_absolute() => {
                if !is_program(named) {
                    return Err(InstallError::NotThere { path: named.to_owned(), searched: None });
                }
                named.to_owned()
            }
            Some(name) if name != Path::new("postgres") => {
                let path = env::var_os("PATH").unwrap_or_default();
                in_path(&path, name).next().ok_or_else(|| InstallError::NotThere {
                    path: name.to_owned(),
                    searched: Some(" (looked up in PATH)".to_owned()),
                })?
            }
            _ => return search(&Places::of_this_machine(), cache).await,
        };
        Self::at(path, cache).await
    }

    async fn at(path: PathBuf, cache: Option<&Path>) -> Result<Self, InstallError> {
        // Canonical, because running servers are recognised by what /proc calls their executable, and because
        // PATH entries are often links into the directory where the sibling tools are.
        let postgres = fs::canonicalize(&path).map_err(|source| InstallError::Run {
            path: path.clone(),
            source: RunError::Spawn { program: path.clone(), source },
        })?;
        let remembered = cache.and_then(|cache| memory::recall(cache, &postgres));
        let asked = remembered.is_none();
        let answer = match remembered {
            Some(answer) => answer,
            None => version_of(&postgres).await?,
        };
        let version = Version::parse(&answer).ok_or_else(|| InstallError::NotPostgres {
            path: path.clone(),
            answer: answer.chars().take(200).collect(),
        })?;
        if version.major < OLDEST {
            return Err(InstallError::TooOld { path, version });
        }
        if asked
            && let Some(cache) = cache
            && let Err(error) = memory::keep(cache, &postgres, answer)
        {
            tracing::debug!(%error, cache = %cache.display(), "the version of PostgreSQL is not remembered");
        }
        Ok(Self { postgres, version })
    }

    /// The server program, as an absolute path without links.
    pub fn postgres(&self) -> &Path {
        &self.postgres
    }

    /// A tool from the server's directory, for instance `initdb`. Whether it exists shows when it is run.
    pub fn tool(&self, name: &str) -> PathBuf {
        self.postgres.with_file_name(name)
    }

    /// Its version.
    pub fn version(&self) -> &Version {
        &self.version
    }
}

async fn version_of(postgres: &Path) -> Result<String, InstallError> {
    let mut command = Command::new(postgres);
    command.arg("--version");
    let output = process::run(command, &CancellationToken::new(), limits::VERSION_PROBE)
        .await
        .map_err(|source| InstallError::Run { path: postgres.to_owned(), source })?;
    let printed = if output.status.success() { output.stdout } else { output.stderr };
    Ok(String::from_utf8_lossy(&printed).into_owned())
}

/// Where servers are looked for.
#[derive(Debug)]
struct Places {
    /// As `PATH` has it.
    path: OsString,
    /// Directories with one subdirectory for each version, and what comes before the number in its name.
    packages: Vec<(PathBuf, &'static str)>,
}

impl Places {
    fn of_this_machine() -> Self {
        Self {
            path: env::var_os("PATH").unwrap_or_default(),
            packages: vec![(DEBIAN.into(), ""), (REDHAT.0.into(), REDHAT.1)],
        }
    }

    /// What `pg_config` says. It comes with the client library too, and then names a directory without a server.
    async fn configured(&self) -> Option<PathBuf> {
        let mut command = Command::new(in_path(&self.path, "pg_config".as_ref()).next()?);
        command.arg("--bindir");
        let output = process::run(command, &CancellationToken::new(), limits::VERSION_PROBE).await.ok()?;
        let bindir = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
        let found = bindir.join("postgres");
        (output.status.success() && is_program(&found)).then_some(found)
    }

    /// The versions of all packages, the newest first.
    fn packaged(&self) -> Vec<PathBuf> {
        let mut versions: Vec<(u32, PathBuf)> = Vec::new();
        for (root, prefix) in &self.packages {
            let Ok(entries) = fs::read_dir(root) else { continue };
            versions.extend(entries.filter_map(|entry| {
                let entry = entry.ok()?;
                let version = entry.file_name().to_str()?.strip_prefix(prefix)?.parse().ok()?;
                let program = entry.path().join("bin/postgres");
                is_program(&program).then_some((version, program))
            }));
        }
        versions.sort();
        versions.into_iter().rev().map(|(_, program)| program).collect()
    }
}

/// The first server of a served version.
async fn search(places: &Places, cache: Option<&Path>) -> Result<Installation, InstallError> {
    let mut refused: Option<InstallError> = None;
    // One after the other: asking costs, and nearly always the first is taken.
    for place in 0..3 {
        let candidates = match place {
            0 => in_path(&places.path, "postgres".as_ref()).collect(),
            1 => places.configured().await.into_iter().collect(),
            _ => places.packaged(),
        };
        for candidate in candidates {
            let error = match Installation::at(candidate, cache).await {
                Ok(found) => return Ok(found),
                Err(error) => error,
            };
            tracing::info!(%error, "a PostgreSQL was passed over");
            let says_more = |known: &InstallError| {
                matches!(error, InstallError::TooOld { .. }) && !matches!(known, InstallError::TooOld { .. })
            };
            if refused.as_ref().is_none_or(says_more) {
                refused = Some(error);
            }
        }
    }
    Err(refused.unwrap_or(InstallError::NoneFound))
}

fn in_path(path: &OsStr, name: &Path) -> impl Iterator<Item = PathBuf> {
    env::split_paths(path).map(move |dir| dir.join(name)).filter(|path| is_program(path))
}

fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_all_shapes_are_read() {
        for (answer, major, text) in [
            ("PostgreSQL 15.4 (Debian 15.4-1.pgdg120+1)\n", 15, "15.4 (Debian 15.4-1.pgdg120+1)"),
            ("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)", 15, "15.18 (Debian 15.18-0+deb12u1)"),
            ("PostgreSQL 16beta1", 16, "16beta1"),
            ("postgres (PostgreSQL) 17devel", 17, "17devel"),
            ("PostgreSQL 14", 14, "14"),
        ] {
            let version = Version::parse(answer).unwrap();
            assert_eq!((version.major, version.text.as_str()), (major, text));
        }
        for answer in ["", "PostgreSQL", "PostgreSQL x", "psql 15", "bash 5.2"] {
            assert_eq!(Version::parse(answer), None, "{answer}");
        }
    }

    fn script(dir: &Path, name: &str, body: &str) -> PathBuf {
        let path = dir.join(name);
        // Written by another process: a file that we had open for writing cannot be run while another
        // thread's fork still holds it.
        let write = r#"printf '#!/bin/sh\n%s\n' "$1" > "$2"; chmod 755 "$2""#;
        let done = Command::new("sh").args(["-c", write, "sh", body]).arg(&path).status().unwrap();
        assert!(done.success());
        path
    }

    #[tokio::test]
    async fn a_found_server_is_named_with_its_version_when_it_will_not_do() {
        let dir = tempfile::tempdir().unwrap();
        let old = script(dir.path(), "postgres", "echo 'postgres (PostgreSQL) 14.9'");
        let error = Installation::find(Some(&old), None).await.unwrap_err().to_string();
        assert!(error.contains("14.9") && error.contains(old.to_str().unwrap()), "{error}");

        let other = script(dir.path(), "other", "echo hello");
        assert!(matches!(
            Installation::find(Some(&other), None).await,
            Err(InstallError::NotPostgres { .. })
        ));

        let absent = dir.path().join("absent");
        let error = Installation::find(Some(&absent), None).await.unwrap_err();
        assert!(error.to_string().contains(absent.to_str().unwrap()));
        let bare = Installation::find(Some(Path::new("no-such-server")), None).await.unwrap_err().to_string();
        assert!(bare.contains("PATH"), "{bare}");
    }

    #[test]
    fn the_newest_version_is_taken_by_number() {
        let dir = tempfile::tempdir().unwrap();
        let bin = |version: &str| dir.path().join(version).join("bin");
        for version in ["9", "15", "16", "notes", "pgsql-18", "pgsql-x"] {
            fs::create_dir_all(bin(version)).unwrap();
            script(&bin(version), "postgres", "true");
        }
        fs::create_dir_all(bin("17")).unwrap();
        let packages = vec![(dir.path().to_owned(), ""), (dir.path().to_owned(), "pgsql-")];
        let found = Places { path: OsString::new(), packages }.packaged();
        let expected = ["pgsql-18", "16", "15", "9"].map(|version| bin(version).join("postgres"));
        assert_eq!(found, expected, "17 has no server");
    }

    #[tokio::test]
    async fn a_server_that_is_too_old_does_not_hide_another() {
        let dir = tempfile::tempdir().unwrap();
        let dir = fs::canonicalize(dir.path()).map(|path| (dir, path)).unwrap();
        let place = |name: &str, answer: &str| {
            let place = dir.1.join(name);
            fs::create_dir_all(&place).unwrap();
            script(&place, "postgres", &format!("echo '{answer}'"))
        };
        let broken = place("broken", "hello");
        let old = place("old", "postgres (PostgreSQL) 14.9");
        let path = env::join_paths([broken.parent().unwrap(), old.parent().unwrap()]).unwrap();
        let search_in = |path: &OsStr| {
            let places = Places { path: path.to_owned(), packages: vec![(dir.1.join("packages"), "v")] };
            async move { search(&places, None).await.map(|found| found.postgres) }
        };

        let none = search_in("".as_ref()).await.unwrap_err();
        assert!(matches!(none, InstallError::NoneFound), "{none}");
        let error = search_in(&path).await.unwrap_err();
        assert!(matches!(&error, InstallError::TooOld { path, .. } if *path == old), "{error}");

        let packaged = place("packages/v16/bin", "postgres (PostgreSQL) 16.1");
        place("packages/v15/bin", "postgres (PostgreSQL) 15.1");
        assert_eq!(search_in(&path).await.unwrap(), packaged);

        let configured = place("configured", "postgres (PostgreSQL) 15.2");
        let bindir = configured.parent().unwrap().display();
        script(old.parent().unwrap(), "pg_config", &format!("test \"$1\" = --bindir && echo {bindir}"));
        assert_eq!(search_in(&path).await.unwrap(), configured);

        let good = place("good", "postgres (PostgreSQL) 17.3");
        let path =
            env::join_paths(env::split_paths(&path).chain([good.parent().unwrap().to_owned()])).unwrap();
        assert_eq!(search_in(&path).await.unwrap(), good);
    }
}
