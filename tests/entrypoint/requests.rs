//! Requests that work with Postgres, from the program's own command line to its own server.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};

use serde_json::{Value, json};

use crate::support::node::{COMPUTE_ID, DEADLINE, Node, Place, http, token};

fn inside(place: &Place, path: &str, body: &Value) -> (u16, String) {
    http(place.internal, "POST", path, None, Some(&body.to_string())).unwrap()
}

/// The answer of a `GET /database_schema`, from its beginning on.
fn schema(place: &Place, database: &str) -> TcpStream {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, place.external)).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let token = token(COMPUTE_ID);
    write!(
        stream,
        "GET /database_schema?database={database} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
         Authorization: Bearer {token}\r\n\r\n"
    )
    .unwrap();
    let mut head = [0; 12];
    stream.read_exact(&mut head).unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");
    stream
}

/// Makes the schema of a database as many mebibytes large as this.
fn grow(place: &Place, database: &str, mebibytes: usize) {
    let sql = format!(
        "DO $$ BEGIN FOR i IN 1..{mebibytes} LOOP EXECUTE format('CREATE FUNCTION public.f%s() RETURNS text \
         LANGUAGE sql AS %L', i, 'SELECT ''' || repeat('x', 1 << 20) || ''''); END LOOP; END $$"
    );
    place.try_sql(database, &sql).unwrap();
}

/// The most memory the program has ever had, in bytes.
fn peak(node: &Node<'_>) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.pid)).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("the kernel tells");
    line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() * 1024
}

#[test]
fn what_needs_postgres_is_refused_until_it_runs_and_served_then() {
    let place = Place::new();
    place.configure(&Value::Null);
    let node = place.start(&[]);
    node.wait_status("empty");
    let grant = json!({ "database": "app", "schema": "s", "privileges": ["USAGE"], "role": "alice" });
    let extension = json!({ "extension": "citext", "database": "app", "version": "1.6" });
    let refused = (412, r#"{"error":"invalid compute status: empty"}"#.to_owned());
    assert_eq!(node.request("GET", "/insights", None).unwrap(), refused);
    assert_eq!(node.post("/check_writability", None), refused);
    assert_eq!(inside(&place, "/grants", &grant), refused);
    assert_eq!(inside(&place, "/extensions", &extension), refused);
    assert_eq!(node.request("GET", "/dbs_and_roles", None).unwrap().0, 500);
    assert_eq!(node.request("GET", "/database_schema?database=app", None).unwrap().0, 500);

    let mut spec = place.spec();
    spec["cluster"]["roles"] = json!([{ "name": "alice", "encrypted_password": null }]);
    spec["cluster"]["databases"] = json!([{ "name": "app", "owner": "alice" }]);
    assert_eq!(node.configure(&spec).0, 200);
    place.try_sql("app", "CREATE SCHEMA s").unwrap();

    let (code, body) = node.request("GET", "/dbs_and_roles", None).unwrap();
    let app = r#"{"name":"app","owner":"alice","options":null,"restrict_conn":false,"invalid":false}"#;
    assert!(code == 200 && body.contains(app), "{code} {body}");
    assert_eq!(node.request("GET", "/insights", None).unwrap().0, 200);
    place.sql("CREATE TABLE IF NOT EXISTS public.health_check (id int PRIMARY KEY, updated_at timestamptz)");
    assert_eq!(node.post("/check_writability", None), (200, "true".to_owned()));
    let (code, body) = inside(&place, "/grants", &grant);
    assert_eq!((code, serde_json::from_str(&body).ok()), (201, Some(grant)), "{body}");
    let may = "SELECT has_schema_privilege('alice', 's', 'USAGE')";
    assert_eq!(place.try_sql("app", may), Ok("t".to_owned()));
    let done = (201, r#"{"extension":"citext","version":"1.6"}"#.to_owned());
    assert_eq!(inside(&place, "/extensions", &extension), done);
    let (code, body) = node.request("GET", "/database_schema?database=app", None).unwrap();
    assert!(code == 200 && body.contains("CREATE EXTENSION IF NOT EXISTS citext"), "{code} {body}");
    let unknown = (404, r#"{"error":"database does not exist"}"#.to_owned());
    assert_eq!(node.request("GET", "/database_schema?database=nowhere", None).unwrap(), unknown);
    node.terminate();
}

#[test]
fn a_large_schema_passes_through_without_being_kept() {
    let place = Place::new();
    place.configure(&place.spec());
    let node = place.start(&[]);
    node.wait_status("running");
    grow(&place, "postgres", 128);
    // Whatever is only needed once is there before it is measured.
    assert_eq!(node.request("GET", "/database_schema?database=template1", None).unwrap().0, 200);
    let before = peak(&node);
    let mut dump = schema(&place, "postgres");
    let (mut chunk, mut length, mut tail) = (vec![0; 1 << 16], 0, Vec::new());
    loop {
        let read = dump.read(&mut chunk).unwrap();
        if read == 0 {
            break;
        }
        length += read;
        tail.extend_from_slice(&chunk[..read]);
        tail.drain(..tail.len().saturating_sub(16));
    }
    assert!(length > 128 << 20, "{length}");
    assert!(tail.ends_with(b"\r\n0\r\n\r\n"), "it is not whole: {tail:?}");
    let grown = peak(&node) - before;
    assert!(grown < 16 << 20, "{grown} bytes more");
    node.terminate();
}

#[test]
fn a_dump_that_nobody_reads_does_not_survive_the_node() {
    let place = Place::new();
    place.configure(&place.spec());
    let node = place.start(&[]);
    node.wait_status("running");
    grow(&place, "postgres", 64);
    let sleeper = schema(&place, "postgres");
    assert!(place.processes().iter().any(|process| process.name == "pg_dump"));
    node.terminate();
    drop(sleeper);
}
