//! What comes to the internal server: the proxy on the machine, and Postgres asking for extensions.

use serde_json::{Value, json};

use crate::support::node::Place;
use crate::{Answer, admin_token, ask, document, outside, write_down};

fn local(place: &Place, path: &str, body: &Value) -> Answer {
    ask(("localhost", place.internal), "POST", path, &["Content-Type: application/json"], &body.to_string())
}

#[test]
fn the_local_proxy_prepares_a_database_for_its_tokens() {
    let place = Place::new();
    let mut spec = place.spec();
    spec["cluster"]["roles"] = json!([{ "name": "authenticated", "encrypted_password": null }]);
    spec["cluster"]["databases"] = json!([{ "name": "neondb", "owner": "authenticated" }]);
    write_down(&place, &document(&spec));
    let node = place.start(&[]);
    node.wait_status("running");
    let extension = json!({ "extension": "citext", "database": "neondb", "version": "1.6" });
    place.try_sql("neondb", "create schema auth").unwrap();
    let grants =
        json!({ "database": "neondb", "schema": "auth", "privileges": ["USAGE"], "role": "authenticated" });
    // Each time it needs them, and so also when all is done already.
    for _ in 0..2 {
        let answer = local(&place, "/extensions", &extension).succeeded();
        assert_eq!(answer.expect(201).json(), json!({ "extension": "citext", "version": "1.6" }));
        let answer = local(&place, "/grants", &grants).succeeded();
        assert_eq!(answer.expect(201).json(), grants);
    }
    let may = "select has_schema_privilege('authenticated', 'auth', 'usage')";
    assert_eq!(place.try_sql("neondb", may).unwrap(), "t");
    // What cannot be done has a text.
    let unknown = json!({ "extension": "no_such_thing", "database": "neondb", "version": "1" });
    let answer = local(&place, "/extensions", &unknown).expect(500);
    assert!(
        answer.json()["error"].as_str().unwrap().starts_with("failed to install extension: "),
        "{answer:?}"
    );
    outside(&place, &admin_token(), "POST", "/terminate?mode=immediate", None).succeeded();
}

#[test]
fn postgres_asks_for_an_extension_and_is_answered() {
    let place = Place::new();
    write_down(&place, &document(&place.spec()));
    let node = place.start(&[]);
    node.wait_status("running");
    // A POST of `curl` without a body and a content type. Any answer does: only a broken connection is an error.
    for path in
        ["/extension_server/postgis?is_library=false", "/extension_server/lib/postgis-3.so?is_library=true"]
    {
        let answer = ask(("localhost", place.internal), "POST", path, &["Accept: */*"], "");
        assert!(matches!(answer.code, 412 | 501), "{answer:?}");
        assert!(answer.json()["error"].is_string(), "{answer:?}");
    }
    node.terminate();
}

#[test]
fn neither_server_has_the_routes_of_the_other() {
    let place = Place::new();
    write_down(&place, &document(&Value::Null));
    let node = place.start(&[]);
    node.wait_status("empty");
    for path in ["/status", "/configure", "/terminate", "/metrics", "/insights"] {
        let answer = ask(("localhost", place.internal), "POST", path, &[], "").expect(404);
        assert_eq!(answer.body, "");
    }
    for path in ["/grants", "/extensions", "/extension_server/x"] {
        let answer = outside(&place, "", "POST", path, None).expect(404);
        assert_eq!(answer.body, "");
    }
    node.terminate();
}
