//! Every way in which a base backup fails: what is said of it, whether it may pass, and that nothing is left.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};

use compute_ctl::storage::{Neon, NeonError, Storage, StorageError};
use serde_json::json;

use crate::support::lab::{Lab, patiently};
use crate::support::pageserver::archive::gzipped;
use crate::support::pageserver::{Answer, Pageserver, Refusal, Sending, Then, Transport};
use crate::{
    BOTH, NOBODY, PATIENT, about, add, backupish, chain, fails, fresh, replica, sends, stored, whole,
};

#[tokio::test]
async fn every_failure_is_named_and_leaves_nothing() {
    let lab = Lab::new().await;
    let bytes = whole(&lab);
    let sending = Sending::new(&bytes);
    let part = |then: Then| Answer::Archive(Sending { upto: Some(bytes.len() / 2), then, ..sending.clone() });
    let end = |then: Then| Answer::Archive(Sending { then, ..sending.clone() });
    let refusal = |sqlstate, status, text| Refusal::new(sqlstate, status, text);
    let internal = refusal("XX000", 13, "the layer is gone");
    let followed = [bytes.as_slice(), b"and more"].concat();
    let twice = [bytes.as_slice(), &gzipped(b"something else")].concat();
    let uncompressed = backupish(&lab, |_| {});
    let control = backupish(&lab, |_| {});
    let without = |missing: &str| {
        let mut tar = tar::Builder::new(Vec::new());
        let version = format!("{}\n", lab.installation.version().major);
        let files: [(&str, &[u8]); 2] =
            [("PG_VERSION", version.as_bytes()), ("global/pg_control", &[1; 8192])];
        for (name, data) in files.into_iter().filter(|(name, _)| *name != missing) {
            add(&mut tar, name, data);
        }
        gzipped(&tar.into_inner().unwrap())
    };
    let other_version = {
        let mut tar = tar::Builder::new(Vec::new());
        add(&mut tar, "PG_VERSION", b"9\n");
        add(&mut tar, "global/pg_control", &[1; 8192]);
        gzipped(&tar.into_inner().unwrap())
    };
    // What is answered, what the error says over libpq and over gRPC, and whether it may pass.
    let cases: Vec<(Answer, [&str; 2], bool)> = vec![
        (Answer::Close, ["the connection ended before it answered", "gRPC status"], true),
        (
            Answer::Error(internal.clone()),
            ["error XX000: the layer is gone", "Internal: the layer is gone"],
            true,
        ),
        (
            Answer::Error(refusal("57P01", 14, "shutting down")),
            ["error 57P01: shutting down", "Unavailable: shutting down"],
            true,
        ),
        (Answer::Error(refusal("08006", 1, "moving")), ["error 08006", "Cancelled"], true),
        (Answer::Error(refusal("XX000", 5, "no such tenant")), ["XX000: no such tenant", "NotFound"], true),
        (Answer::Error(refusal("28000", 7, "not yours")), ["28000: not yours", "PermissionDenied"], false),
        (Answer::Error(refusal("42601", 3, "what?")), ["42601: what?", "InvalidArgument: what?"], false),
        (Answer::Error(refusal("0A000", 9, "archived")), ["0A000: archived", "FailedPrecondition"], false),
        (part(Then::Close), ["ended in the middle of a base backup", "gRPC status"], true),
        (
            part(Then::Error(internal.clone())),
            ["XX000: the layer is gone", "Internal: the layer is gone"],
            true,
        ),
        (part(Then::Finish), ["damaged", "damaged"], true),
        // The archive is whole, and its server says that it is not.
        (end(Then::Close), ["ended in the middle of a base backup", "gRPC status"], true),
        (end(Then::HalfAnEnd), ["ended in the middle of a base backup", "missing grpc-status"], true),
        (end(Then::Error(internal)), ["XX000: the layer is gone", "Internal: the layer is gone"], true),
        (sends(&followed), ["damaged", "damaged"], true),
        (sends(&twice), ["damaged", "damaged"], true),
        (sends(b"garbage, and not little of it"), ["declared to be gzip"; 2], false),
        (sends(b""), ["without a byte"; 2], true),
        (sends(&uncompressed), ["declared to be gzip"; 2], false),
        (sends(&gzipped(b"garbage")), ["no tar archive"; 2], true),
        (sends(&gzipped(&control[..control.len() - 1024])), ["cut off"; 2], true),
        (sends(&without("PG_VERSION")), ["PG_VERSION is missing"; 2], true),
        (sends(&without("global/pg_control")), ["global/pg_control is missing"; 2], true),
        (sends(&other_version), ["PostgreSQL 9"; 2], false),
    ];
    for (answer, words, passes) in cases {
        for (transport, words) in BOTH.into_iter().zip(words) {
            let server = Pageserver::start([answer.clone()]);
            let error = fails(&lab, &replica(&server, transport, PATIENT)).await;
            let text = chain(&error);
            assert!(text.contains(words), "{transport:?}: {words:?} is not in: {text}");
            assert_eq!(error.is_unreachable(), passes, "{transport:?}: {text}");
            assert!(!error.is_cancelled() && !error.is_disk_full(), "{text}");
            if !text.contains("PostgreSQL 9") {
                let url = if transport == Transport::Libpq { server.libpq_url() } else { server.grpc_url() };
                let port = url.rsplit(':').next().unwrap();
                assert!(text.contains(&format!("pageserver 7 at 127.0.0.1:{port}")), "{text}");
            }
            // The next try finds nothing of it.
            server.answer([sends(&bytes)]);
            let pgdata = fresh(&lab);
            patiently(replica(&server, transport, PATIENT).prepare(&lab.context(&pgdata))).await.unwrap();
        }
    }
}

#[tokio::test]
async fn what_no_data_directory_has_is_refused_for_good() {
    let lab = Lab::new().await;
    let link = |kind, name: &'static str, target: &'static str| {
        move |tar: &mut tar::Builder<Vec<u8>>| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_mode(0o600);
            header.set_size(0);
            // Past the checks of the library that writes.
            let bytes = &mut header.as_mut_bytes()[..100];
            bytes[..name.len()].copy_from_slice(name.as_bytes());
            header.as_mut_bytes()[157..157 + target.len()].copy_from_slice(target.as_bytes());
            header.set_cksum();
            tar.append(&header, &[][..]).unwrap();
        }
    };
    let file = |name| link(tar::EntryType::Regular, name, "");
    let outside = lab.path("outside");
    for (change, words) in [
        (Box::new(file("../outside")) as Box<dyn FnOnce(&mut tar::Builder<Vec<u8>>)>, "\"..\""),
        (Box::new(file("/tmp/outside")), "absolute"),
        (Box::new(link(tar::EntryType::Symlink, "pg_dynshmem", "/dev/shm")), "leaves the directory"),
        (Box::new(link(tar::EntryType::Link, "passwd", "../outside")), "hard link"),
        (Box::new(link(tar::EntryType::Char, "null", "")), "a device"),
    ] {
        let bytes = gzipped(&backupish(&lab, change));
        for transport in BOTH {
            let server = Pageserver::start([sends(&bytes)]);
            let error = fails(&lab, &replica(&server, transport, PATIENT)).await;
            let text = chain(&error);
            assert!(text.contains(words) && !error.is_unreachable(), "{text}");
            assert!(matches!(error, StorageError::Neon(NeonError::Unpack { .. })), "{error:?}");
            assert!(!outside.exists());
        }
    }
}

#[tokio::test]
async fn a_base_backup_may_be_cut_off_anywhere() {
    let lab = Lab::new().await;
    let bytes = whole(&lab);
    let places = [1, 9, 17, 600, bytes.len() / 3, bytes.len() - 9, bytes.len() - 8, bytes.len() - 1];
    for transport in BOTH {
        for upto in places {
            for then in [Then::Finish, Then::Close, Then::Error(Refusal::new("XX000", 13, "late"))] {
                let cut = Sending { upto: Some(upto), then: then.clone(), ..Sending::new(&bytes) };
                let server = Pageserver::start([Answer::Archive(cut)]);
                let error = fails(&lab, &replica(&server, transport, PATIENT)).await;
                // Of one byte nobody knows yet that it begins a gzip.
                let passes = error.is_unreachable() || (upto == 1 && matches!(then, Then::Finish));
                assert!(passes, "{transport:?} {upto} {then:?}: {}", chain(&error));
            }
        }
    }
}

/// A server that plays one side of a conversation without listening to the other, and then hangs up.
fn says(bytes: Vec<u8>) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        // The client may hang up as soon as it does not like what it hears.
        let _ = stream.write_all(&bytes).and_then(|()| stream.shutdown(std::net::Shutdown::Write));
        while stream.read(&mut [0; 4096]).is_ok_and(|length| length > 0) {}
    });
    port
}

fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = i32::try_from(body.len() + 4).unwrap();
    [&[tag][..], &length.to_be_bytes(), body].concat()
}

#[tokio::test]
async fn whatever_a_server_says_is_understood_or_an_error() {
    let lab = Lab::new().await;
    let silent = Pageserver::start([]);
    let facts = about(&silent, Transport::Libpq, &json!("Replica"));
    let neon = |port: u16| {
        let mut facts = facts.clone();
        let url = "/pageserver_connection_info/shards/0000/pageservers/0/libpq_url";
        *facts.pointer_mut(url).unwrap() = json!(format!("postgresql://127.0.0.1:{port}"));
        Neon::with(&stored(&facts), PATIENT, NOBODY).unwrap()
    };
    let (let_in, ready) = (frame(b'R', &[0; 4]), frame(b'Z', b"I"));
    let (copy, done) = (frame(b'H', &[0; 3]), frame(b'c', b""));
    let (complete, notice) = (frame(b'C', b"SELECT 1\0"), frame(b'N', b"SNOTICE\0Mhm\0\0"));
    let (data, row) = (frame(b'd', &whole(&lab)), frame(b'D', &[0, 0]));
    // Remarks may come at any time.
    let good = [&notice, &let_in, &notice, &ready, &copy, &data, &notice, &done, &complete];
    let pgdata = fresh(&lab);
    let port = says(good.into_iter().flatten().copied().collect());
    patiently(neon(port).prepare(&lab.context(&pgdata))).await.unwrap();
    let garbled = frame(b'E', b"no fields");
    let (unknown, negative) = (frame(b'?', b""), b"d\xff\xff\xff\xff".to_vec());
    let cases: [(&[&Vec<u8>], &str); 14] = [
        (&[], "ended before it let us in"),
        (&[&ready], "authentication that no pageserver asks for"),
        (&[&let_in], "ended before it let us in"),
        (&[&let_in, &copy], "does not say that it is ready"),
        (&[&let_in, &ready, &complete], "no COPY begins"),
        (&[&let_in, &ready, &row], "no COPY begins"),
        (&[&let_in, &ready, &copy, &complete], "goes on in another way"),
        (&[&let_in, &ready, &copy, &done, &complete], "without a byte"),
        (&[&let_in, &ready, &copy, &data, &done, &done], "goes on in another way"),
        (&[&let_in, &ready, &copy, &data, &done, &data], "goes on in another way"),
        (&[&let_in, &ready, &copy, &data, &row], "goes on in another way"),
        (&[&let_in, &ready, &copy, &data, &garbled], "answers with error"),
        (&[&let_in, &ready, &copy, &data, &unknown], "cannot be read"),
        (&[&let_in, &ready, &copy, &data, &negative], "cannot be read"),
    ];
    for (frames, words) in cases {
        let port = says(frames.iter().flat_map(|frame| frame.iter().copied()).collect());
        let error = fails(&lab, &neon(port)).await;
        let text = chain(&error);
        assert!(text.contains(words), "{words:?} is not in: {text}");
    }
}
