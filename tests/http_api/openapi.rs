//! The document that each server gives of itself, against what it serves.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use compute_ctl::http::Auth;
use compute_states::Policy;
use serde_json::Value;

use crate::support::{Node, request, send};

/// Every route, as the reference lists them (http-api, section 1), and ours: methods and whether a token is needed.
const EXTERNAL: [(&str, &[&str], bool); 27] = [
    ("/status", &["get", "head"], true),
    ("/metrics", &["get", "head"], false),
    ("/configure", &["post"], true),
    ("/promote", &["post"], true),
    ("/plan", &["post"], true),
    ("/terminate", &["post"], true),
    ("/dbs_and_roles", &["get", "head"], true),
    ("/database_schema", &["get", "head"], true),
    ("/check_writability", &["post"], true),
    ("/insights", &["get", "head"], true),
    ("/hadron_liveness_probe", &["get", "head"], true),
    ("/autoscaling_metrics", &["get", "head"], false),
    ("/lfc/prewarm", &["delete", "get", "head", "post"], true),
    ("/lfc/offload", &["get", "head", "post"], true),
    ("/livez", &["get", "head"], false),
    ("/readyz", &["get", "head"], false),
    ("/startupz", &["get", "head"], false),
    ("/openapi.json", &["get", "head"], false),
    ("/metrics.json", &["get", "head"], true),
    ("/history", &["get", "head"], true),
    ("/events", &["get", "head"], true),
    ("/fsm", &["get", "head"], true),
    ("/refresh_configuration", &["post"], true),
    ("/ui", &["get", "head"], false),
    ("/nothing", &[], false),
    ("/grants", &[], false),
    ("/failpoints", &[], false),
];
const INTERNAL: [(&str, &[&str], bool); 12] = [
    ("/refresh_configuration", &["post"], false),
    ("/grants", &["post"], false),
    ("/extensions", &["post"], false),
    ("/extension_server/{filename}", &["post"], false),
    ("/failpoints", &["post"], false),
    ("/livez", &["get", "head"], false),
    ("/readyz", &["get", "head"], false),
    ("/startupz", &["get", "head"], false),
    ("/openapi.json", &["get", "head"], false),
    ("/status", &[], false),
    ("/terminate", &[], false),
    ("/extension_server/", &[], false),
];

const METHODS: [&str; 8] = ["get", "head", "post", "put", "delete", "patch", "options", "trace"];

async fn document(server: SocketAddr) -> Value {
    let answer = send(server, &request("GET", "/openapi.json", "", "")).await;
    assert_eq!(answer.status, "200 OK");
    assert_eq!(answer.header("content-type"), Some("application/json"));
    answer.json()
}

/// Paths, with the methods that are described.
fn described(document: &Value) -> BTreeMap<String, BTreeSet<String>> {
    let paths = document["paths"].as_object().expect("paths");
    let methods = |item: &Value| item.as_object().expect("methods").keys().cloned().collect();
    paths.iter().map(|(path, item)| (path.clone(), methods(item))).collect()
}

#[tokio::test]
async fn what_is_described_is_served_and_what_is_served_is_described() {
    let node = Node::running().await;
    let known = |routes: &[(&str, &[&str], bool)]| {
        let methods = |methods: &[&str]| methods.iter().map(|method| (*method).to_owned()).collect();
        let served = routes.iter().filter(|(_, methods, _)| !methods.is_empty());
        served
            .map(|(path, names, _)| ((*path).to_owned(), methods(names)))
            .collect::<BTreeMap<_, BTreeSet<_>>>()
    };
    for (server, routes) in [(node.external, &EXTERNAL[..]), (node.internal[0], &INTERNAL[..])] {
        let document = document(server).await;
        assert_eq!(described(&document), known(routes));
        for (path, methods, token) in routes {
            for method in METHODS {
                let operation = &document["paths"][path][method];
                let concrete = path.replace("{filename}", "a/b");
                let bytes = request(&method.to_uppercase(), &concrete, "", "");
                let answer = send(server, &bytes).await;
                let code = &answer.status[..3];
                let case = format!("{method} {path}: {answer:?}");
                match (methods.contains(&method), methods.is_empty()) {
                    (false, true) => assert_eq!(code, "404", "{case}"),
                    (false, false) => assert_eq!(code, "405", "{case}"),
                    (true, _) => {
                        assert!(operation["responses"].get(code).is_some(), "{case}");
                        assert_eq!(operation.get("security").is_some(), *token, "{case}");
                        assert_eq!(answer.status == "400 Bad Request", *token, "{case}");
                    }
                }
            }
        }
    }
    node.stop().await;
}

#[tokio::test]
async fn a_server_that_asks_for_no_token_says_so() {
    let node = Node::with(Policy::default(), Auth::open()).await;
    let document = document(node.external).await;
    assert!(document["components"].get("securitySchemes").is_none());
    let operation = &document["paths"]["/status"]["get"];
    assert!(operation.get("security").is_none());
    assert!(operation["responses"].get("401").is_none());
    assert!(operation["responses"].get("403").is_some());
    node.stop().await;
}

#[tokio::test]
async fn every_reference_leads_somewhere_and_every_operation_is_explained() {
    fn references<'a>(value: &'a Value, found: &mut BTreeSet<&'a str>) {
        match value {
            Value::Object(fields) => {
                found.extend(fields.get("$ref").and_then(Value::as_str));
                fields.values().for_each(|field| references(field, found));
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }
    let node = Node::empty().await;
    for server in [node.external, node.internal[0]] {
        let document = document(server).await;
        let mut found = BTreeSet::new();
        references(&document, &mut found);
        assert!(found.len() > 5, "{found:?}");
        for reference in found {
            let pointer = reference.strip_prefix('#').expect("inside the document");
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
        for (path, item) in document["paths"].as_object().expect("paths") {
            for (method, operation) in item.as_object().expect("methods") {
                assert!(operation["summary"].as_str().is_some_and(|text| text.len() > 5), "{method} {path}");
                for (code, response) in operation["responses"].as_object().expect("responses") {
                    let meaning = response["description"].as_str().expect("a meaning");
                    assert!(!meaning.is_empty(), "{method} {path} {code}");
                }
            }
        }
    }
    node.stop().await;
}
