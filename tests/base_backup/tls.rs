//! Sources that serve TLS.

use std::path::Path;
use std::process::Command;

use compute_ctl::storage::Storage;
use serde_json::json;

use crate::origin::{Origin, backup, but, fails};
use crate::support::lab::{Lab, patiently};
use crate::support::pg::give;

/// A certificate that is its own authority, and its key.
fn certificate(dir: &Path, name: &str) {
    let mut openssl = Command::new("openssl");
    openssl.args([
        "req",
        "-new",
        "-x509",
        "-days",
        "2",
        "-nodes",
        "-subj",
        "/CN=localhost",
        "-newkey",
        "rsa:2048",
    ]);
    openssl.args(["-addext", "subjectAltName=DNS:localhost"]);
    openssl.arg("-out").arg(dir.join(format!("{name}.crt")));
    openssl.arg("-keyout").arg(dir.join(format!("{name}.key")));
    let output = openssl.output().expect("these tests need openssl");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for end in ["crt", "key"] {
        give(&dir.join(format!("{name}.{end}")));
    }
}

#[tokio::test]
async fn a_certificate_is_asked_for_and_judged_as_the_spec_says() {
    let lab = Lab::new().await;
    let mut origin = Origin::start();
    certificate(&origin.server.data(), "server");
    certificate(lab.dir.path(), "other");
    origin.sql("alter system set ssl = on");
    origin.server.stop();
    origin.server.again();
    let own = origin.server.data().join("server.crt");
    let with = |mode: &str, root: Option<&Path>| {
        backup(but(origin.parameters(), json!({ "sslmode": mode, "sslrootcert": root })), true)
    };
    for (number, (mode, root)) in
        [("require", None), ("verify-ca", Some(own.as_path()))].into_iter().enumerate()
    {
        let pgdata = lab.claim(&number.to_string());
        patiently(with(mode, root).prepare(&lab.context(&pgdata))).await.unwrap();
    }
    let error = fails(&lab, &with("verify-ca", Some(&lab.path("other.crt")))).await;
    assert!(error.to_string().contains("certificate verify failed") && !error.is_unreachable(), "{error}");
    let error = fails(&lab, &with("verify-ca", Some(&lab.path("absent.crt")))).await;
    assert!(error.to_string().contains("certificate file") && !error.is_unreachable(), "{error}");
    // The certificate is of `localhost`, and the server was named by its address.
    let error = fails(&lab, &with("verify-full", Some(&own))).await;
    assert!(error.to_string().contains("does not match host name"), "{error}");
    assert!(!error.is_unreachable(), "{error}");
}
