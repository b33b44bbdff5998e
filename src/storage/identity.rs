//! A clone's own identity.
//!
//! The *system identifier* is what PostgreSQL tells clusters apart by: a standby streams from, and an archive
//! takes WAL of, the cluster with the same identifier. Clones that shared their template's would pass for one
//! another, and a standby of a compute that was wiped and cloned again would go on streaming from what is now
//! another cluster, with no error and wrong data. So each clone gets a new one, as `initdb` would have
//! given it: in `global/pg_control` and in the header of each WAL segment (pg_control.h, xlog_internal.h).
//!
//! Where things are is not assumed but verified: the checksum must be found at the end of the bytes it covers,
//! and the WAL must carry the same identifier. Otherwise nothing is changed.
//!
//! One thing stays shared, the nonce from which SCRAM derives the salts it pretends for users that do not exist. Knowing it
//! lets one tell such users apart, and it is known only to who can read a cluster's files.

use std::fs::{self, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use super::StorageError;

/// Flag in the second half-word of a WAL page: a long header, which carries the identifier.
const XLP_LONG_HEADER: u16 = 0x0002;

/// Where a long WAL page header has the identifier.
const XLP_SYSID: usize = 24;

/// `PG_CONTROL_MAX_SAFE_SIZE`: the data are within one sector.
const CONTROL_MAX: usize = 512;

/// Gives the cluster a new system identifier. `false` when its files are of an unknown format; then they are
/// as they were.
pub(super) fn renew(pgdata: &Path) -> Result<bool, StorageError> {
    let control_path = pgdata.join("global/pg_control");
    let control = fs::read(&control_path).map_err(StorageError::io("read", &control_path))?;
    let Some(checksum_at) = find_checksum(&control) else { return Ok(false) };
    let old = &control[..8];

    let wal = pgdata.join("pg_wal");
    let mut segments = Vec::new();
    for entry in fs::read_dir(&wal).map_err(StorageError::io("list", &wal))? {
        let entry = entry.map_err(StorageError::io("list", &wal))?;
        let name = entry.file_name();
        if name.len() != 24 || !name.to_string_lossy().bytes().all(|byte| byte.is_ascii_hexdigit()) {
            continue;
        }
        let path = entry.path();
        let file = OpenOptions::new().read(true).write(true).open(&path);
        let file = file.map_err(StorageError::io("open", &path))?;
        let mut header = [0; XLP_SYSID + 8];
        file.read_exact_at(&mut header, 0).map_err(StorageError::io("read", &path))?;
        let long = u16::from_ne_bytes([header[2], header[3]]) & XLP_LONG_HEADER != 0;
        if !long || header[XLP_SYSID..] != *old {
            return Ok(false);
        }
        segments.push((path, file));
    }
    if segments.is_empty() {
        return Ok(false);
    }

    let new = identifier().to_ne_bytes();
    for (path, file) in segments {
        file.write_all_at(&new, XLP_SYSID as u64).map_err(StorageError::io("write", &path))?;
    }
    let mut changed = control[..checksum_at + 4].to_vec();
    changed[..8].copy_from_slice(&new);
    let checksum = crc32c(&changed[..checksum_at]).to_ne_bytes();
    changed[checksum_at..].copy_from_slice(&checksum);
    let write = || {
        let mut file = OpenOptions::new().write(true).open(&control_path)?;
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&changed)
    };
    write().map_err(StorageError::io("write", &control_path))?;
    Ok(true)
}

/// The structure ends with its own checksum, at an offset that differs between versions.
fn find_checksum(control: &[u8]) -> Option<usize> {
    (16..CONTROL_MAX.min(control.len()) - 4).step_by(4).find(|&at| {
        let stored: [u8; 4] = control[at..at + 4].try_into().expect("a slice of four bytes");
        crc32c(&control[..at]) == u32::from_ne_bytes(stored)
    })
}

/// As `BootStrapXLOG` makes them: seconds, microseconds, and some bits of the process id. The random bits
/// replace the latter, because one process may clone twice within a microsecond's resolution of its clock.
fn identifier() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let random = u64::from(rand::random::<u16>() & 0xfff);
    (now.as_secs() << 32) | (u64::from(now.subsec_micros()) << 12) | random
}

/// CRC-32C (Castagnoli), bit by bit: it is computed over some hundred bytes, once per start.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_castagnolis() {
        // The check value of the CRC catalogue.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    fn control(length: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..length).map(|n| u8::try_from(n % 251).unwrap()).collect();
        bytes.extend(crc32c(&bytes).to_ne_bytes());
        bytes.resize(8192, 0);
        bytes
    }

    #[test]
    fn the_checksum_is_found_wherever_the_structure_ends() {
        for length in [288, 296, 304] {
            assert_eq!(find_checksum(&control(length)), Some(length));
        }
        let mut damaged = control(296);
        damaged[100] ^= 1;
        assert_eq!(find_checksum(&damaged), None);
    }

    #[test]
    fn what_is_not_understood_stays_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("global")).unwrap();
        fs::create_dir_all(dir.path().join("pg_wal")).unwrap();
        let (control_path, wal_path) =
            (dir.path().join("global/pg_control"), dir.path().join("pg_wal/000000010000000000000001"));
        // The WAL is another cluster's.
        fs::write(&control_path, control(296)).unwrap();
        let mut wal = vec![0_u8; 64];
        wal[2..4].copy_from_slice(&XLP_LONG_HEADER.to_ne_bytes());
        fs::write(&wal_path, &wal).unwrap();
        assert!(!renew(dir.path()).unwrap());
        assert_eq!(fs::read(&control_path).unwrap(), control(296));
        // It is this one's.
        wal[24..32].copy_from_slice(&control(296)[..8]);
        fs::write(&wal_path, &wal).unwrap();
        assert!(renew(dir.path()).unwrap());
        let new = fs::read(&control_path).unwrap();
        assert_ne!(new[..8], control(296)[..8]);
        assert_eq!(find_checksum(&new), Some(296));
        assert_eq!(fs::read(&wal_path).unwrap()[24..32], new[..8]);
    }
}
