use super::*;

#[test]
fn reports_are_read_wherever_they_are_cut() {
    let text = b"waiting for checkpoint\n    0/22630 kB (0%), 0/1 tablespace\n\n12000/22630 kB (53%), 0/1 \
                 tablespace\rpg_basebackup: error: could not read COPY data: hunter\n\tdetail 1/2\n\
                 22640/22640 kB (100%), 1/1 tablespace\n";
    for cut in 0..text.len() {
        let mut report = Report::default();
        let parts = [report.read(&text[..cut]), report.read(&text[cut..])];
        assert_eq!(parts.into_iter().flatten().sum::<u64>(), 22640 * 1024, "cut at {cut}");
        assert_eq!(report.messages, ["pg_basebackup: error: could not read COPY data: hunter", "detail 1/2"]);
    }
    let mut report = Report::default();
    assert_eq!(report.read(b"waiting for checkpoint\n  0/5 kB"), None);
    assert_eq!(report.read(b" (0%), 0/1 tablespace\n"), Some(0));
    for number in 0..100 {
        report.read(format!("line {number}\n").as_bytes());
    }
    assert_eq!(report.messages.len(), limits::BASE_BACKUP_MESSAGES);
    assert_eq!(report.messages.last().unwrap(), "line 99");
}

#[test]
fn what_passes_is_told_from_what_does_not() {
    let failed = |says: &str| BaseBackupError::Failed {
        what: "reach",
        server: "db:5432".to_owned(),
        says: says.to_owned(),
    };
    for says in [
        "connection to server at \"db\", port 5432 failed: Connection refused",
        "connection to server at \"db\", port 5432 failed: timeout expired",
        "FATAL:  the database system is starting up",
        "FATAL:  sorry, too many clients already",
        "FATAL:  number of requested standby connections exceeds max_wal_senders (currently 1)",
        "pg_basebackup: error: could not read COPY data: server closed the connection unexpectedly",
        "ERROR:  replication slot \"a\" is active for PID 5",
        "ERROR:  all replication slots are in use",
        "requested WAL segment 000000010000000000000002 has already been removed",
        "FATAL:  eine Meldung in einer anderen Sprache",
    ] {
        assert!(failed(says).is_transient(), "{says}");
    }
    for says in [
        "FATAL:  password authentication failed for user \"me\"",
        "fe_sendauth: no password supplied",
        "FATAL:  no pg_hba.conf entry for replication connection from host \"::1\", user \"me\", no encryption",
        "FATAL:  role \"me\" does not exist",
        "FATAL:  must be superuser or replication role to start walsender",
        "FATAL:  permission denied to start WAL sender",
        "ERROR:  replication slot \"a\" does not exist",
        "SSL error: certificate verify failed",
        "root certificate file \"/x\" does not exist",
        "server does not support SSL, but SSL was required",
        "pg_basebackup: error: could not write to file \"a\": No space left on device",
    ] {
        assert!(!failed(says).is_transient(), "{says}");
    }
    assert!(failed("could not write to file \"a\": No space left on device").is_disk_full());
    assert!(!failed("x").is_disk_full());
}
