//! Traces: what a collector gets, and that nothing depends on there being one.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use serde_json::{Value, json};

use crate::support::node::{COMPUTE_ID, Node, Place, config, port, token};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// What was sent to it, and nothing else.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Vec<u8>>>>);

impl Collector {
    /// One that answers; its port.
    fn start() -> (Self, u16) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let collector = Collector::default();
        let kept = collector.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let kept = kept.clone();
                std::thread::spawn(move || kept.serve(stream));
            }
        });
        (collector, port)
    }

    fn serve(&self, mut stream: TcpStream) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        loop {
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                if reader.read_line(&mut head).unwrap_or(0) == 0 {
                    return;
                }
            }
            let head = head.to_lowercase();
            assert!(head.starts_with("post /v1/traces http/1.1\r\n"), "{head}");
            assert!(head.contains("content-type: application/x-protobuf"), "{head}");
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
            let mut body = vec![0; length.parse().unwrap()];
            reader.read_exact(&mut body).unwrap();
            self.0.lock().unwrap().push(body);
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
        }
    }

    fn requests(&self) -> Vec<ExportTraceServiceRequest> {
        let bodies = self.0.lock().unwrap();
        bodies.iter().map(|body| ExportTraceServiceRequest::decode(&body[..]).unwrap()).collect()
    }

    fn spans(&self) -> Vec<Span> {
        let resources = self.requests().into_iter().flat_map(|request| request.resource_spans);
        resources.flat_map(|resource| resource.scope_spans).flat_map(|scope| scope.spans).collect()
    }

    /// The only span of this name, once it has come.
    fn span(&self, node: &Node<'_>, name: &str) -> Span {
        node.wait(&format!("the span {name}"), |_| self.spans().into_iter().find(|span| span.name == name))
    }

    /// The spans of this name inside another one, as they began, once there is one.
    fn inside(&self, node: &Node<'_>, outer: &Span, name: &str) -> Vec<Span> {
        node.wait(&format!("the span {name} in {}", outer.name), |_| {
            let mut found = self.spans();
            found.retain(|span| span.name == name && span.parent_span_id == outer.span_id);
            found.sort_by_key(|span| span.start_time_unix_nano);
            (!found.is_empty()).then_some(found)
        })
    }

    /// The span of a request, once it has come.
    fn request(&self, node: &Node<'_>, path: &str) -> Span {
        node.wait(&format!("the span of {path}"), |_| {
            self.spans().into_iter().find(|span| attribute(span, "url.path").as_deref() == Some(path))
        })
    }
}

fn attribute(span: &Span, name: &str) -> Option<String> {
    let found = span.attributes.iter().find(|attribute| attribute.key == name)?;
    match found.value.as_ref()?.value.as_ref()? {
        any_value::Value::StringValue(text) => Some(text.clone()),
        any_value::Value::IntValue(number) => Some(number.to_string()),
        _ => None,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A node that sends its traces there, soon.
fn traced(place: &Place, collector: u16) -> Command {
    let mut command = place.program();
    command.args(place.arguments());
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://127.0.0.1:{collector}"));
    command.env("OTEL_BSP_SCHEDULE_DELAY", "50");
    command
}

/// A request that belongs to a trace.
fn within_a_trace(port: u16, path: &str, body: &Value) -> String {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    let (token, body) = (token(COMPUTE_ID), body.to_string());
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\
         traceparent: 00-{TRACE}-{PARENT}-01\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_start_is_part_of_the_request_that_asked_for_it() {
    let (collector, at) = Collector::start();
    let place = Place::new();
    place.configure(&Value::Null);
    let node = place.run(traced(&place, at));
    node.wait_status("empty");
    let mut spec = place.spec();
    spec["cluster"]["roles"] = json!([{ "name": "traced" }]);
    spec["cluster"]["databases"] = json!([{ "name": "traced", "owner": "traced" }]);
    let answer = within_a_trace(place.external, "/configure", &config(&spec));
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");

    let request = collector.request(&node, "/configure");
    assert_eq!((hex(&request.trace_id), hex(&request.parent_span_id)), (TRACE.into(), PARENT.into()));
    assert_eq!(attribute(&request, "http.request.method").as_deref(), Some("POST"));
    assert_eq!(attribute(&request, "http.response.status_code").as_deref(), Some("200"));
    let start = collector.span(&node, "start_compute");
    assert_eq!(start.parent_span_id, request.span_id);
    let parts = [
        ("prepare_pgdata", "start_compute"),
        ("start_postgres", "start_compute"),
        ("wait_for_postgres", "start_postgres"),
        ("configure_as_primary", "start_compute"),
        ("apply_config", "configure_as_primary"),
        ("apply_spec_sql", "apply_config"),
        ("post_apply_config", "configure_as_primary"),
    ];
    for (inner, outer) in parts {
        let outer = collector.span(&node, outer);
        let span = collector.span(&node, inner);
        assert_eq!(span.parent_span_id, outer.span_id, "{inner}");
        assert_eq!(hex(&span.trace_id), TRACE, "{inner}");
        let (begun, ended) = (span.start_time_unix_nano, span.end_time_unix_nano);
        assert!(outer.start_time_unix_nano <= begun && ended <= outer.end_time_unix_nano, "{inner}");
    }
    let wait = collector.span(&node, "wait_for_postgres");
    assert_eq!(attribute(&wait, "pgdata").as_deref(), place.pgdata().to_str());
    // Each phase has ended when what it is part of has.
    let sql = collector.span(&node, "apply_spec_sql");
    let phases = collector.inside(&node, &sql, "db_apply_changes");
    let phases: Vec<String> = phases.iter().filter_map(|span| attribute(span, "phase")).collect();
    assert_eq!(phases, ["shared", "databases", "shared", "in_each_database", "shared"]);
    // What goes on after the start is no part of it.
    let migrations = collector.span(&node, "handle_migrations");
    assert!(migrations.parent_span_id.is_empty() && hex(&migrations.trace_id) != TRACE);

    // What it finds is what is applied.
    place.configure(&spec);
    let answer = within_a_trace(place.internal, "/refresh_configuration", &Value::Null);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(hex(&collector.request(&node, "/refresh_configuration").parent_span_id), PARENT);
    node.terminate();

    let requests = collector.requests();
    let resource = requests[0].resource_spans[0].resource.as_ref().unwrap();
    let service = resource.attributes.iter().find(|attribute| attribute.key == "service.name").unwrap();
    assert_eq!(
        service.value.as_ref().unwrap().value,
        Some(any_value::Value::StringValue("compute_ctl".into()))
    );
    assert_eq!(requests[0].resource_spans[0].scope_spans[0].scope.as_ref().unwrap().name, "global");
    // Not even in the span that carried it.
    let secret = token(COMPUTE_ID);
    let bodies = collector.0.lock().unwrap();
    for body in bodies.iter() {
        assert!(!body.windows(secret.len()).any(|part| part == secret.as_bytes()), "a token was sent");
    }
    // The last one, from the end of the program: it was flushed.
    drop(bodies);
    assert!(
        collector.spans().iter().any(|span| attribute(span, "url.path").as_deref() == Some("/terminate"))
    );
}

#[test]
fn a_reconfiguration_is_part_of_the_request_that_asked_for_it() {
    let (collector, at) = Collector::start();
    let place = Place::new();
    place.configure(&place.spec());
    let node = place.run(traced(&place, at));
    node.wait_status("running");
    let mut spec = place.spec();
    let settings = spec["cluster"]["settings"].as_array_mut().unwrap();
    settings.push(json!({ "name": "work_mem", "value": "5MB", "vartype": "string" }));
    let answer = within_a_trace(place.external, "/configure", &config(&spec));
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let request = collector.request(&node, "/configure");
    let change = collector.span(&node, "reconfigure");
    assert_eq!((hex(&change.trace_id), &change.parent_span_id), (TRACE.into(), &request.span_id));
    for part in ["pg_reload_conf", "apply_config", "post_apply_config"] {
        assert_eq!(collector.inside(&node, &change, part).len(), 1, "{part}");
    }
    node.terminate();
    let of_a_start = collector.spans().into_iter().filter(|span| span.name == "configure_as_primary");
    assert_eq!(of_a_start.count(), 1, "the first start's");
}

#[test]
fn the_monitor_is_part_of_nothing() {
    let (collector, at) = Collector::start();
    let place = Place::new();
    place.configure(&place.spec());
    let mut command = traced(&place, at);
    command.env("TRACEPARENT", format!("00-{TRACE}-{PARENT}-01"));
    let node = place.run(command);
    node.wait_status("running");
    let check = collector.span(&node, "check");
    assert_ne!(hex(&check.trace_id), TRACE);
    node.terminate();
    let spans = collector.spans();
    let find = |name: &str| spans.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("{name}"));
    let (life, run) = (find("compute_monitor"), find("run"));
    assert!(life.parent_span_id.is_empty());
    assert_eq!(run.parent_span_id, life.span_id);
    assert_eq!((&check.parent_span_id, &check.trace_id), (&run.span_id, &life.trace_id));
}

#[test]
fn who_has_no_use_for_each_look_of_the_monitor_need_not_get_it() {
    let (collector, at) = Collector::start();
    let place = Place::new();
    place.configure(&place.spec());
    let mut command = traced(&place, at);
    command.env("RUST_LOG", "info,compute_ctl::node::activity::check=off");
    let node = place.run(command);
    node.wait("the first look", |node| node.status().filter(|status| status["activity"].is_object()));
    node.terminate();
    let spans = collector.spans();
    assert!(spans.iter().any(|span| span.name == "compute_monitor"));
    assert!(spans.iter().all(|span| span.name != "check"));
}

#[test]
fn a_start_by_itself_is_part_of_what_started_the_program() {
    let (collector, at) = Collector::start();
    let place = Place::new();
    place.configure(&place.spec());
    let mut command = traced(&place, at);
    command.env("TRACEPARENT", format!("00-{TRACE}-{PARENT}-01"));
    let node = place.run(command);
    let start = collector.span(&node, "start_compute");
    assert_eq!((hex(&start.trace_id), hex(&start.parent_span_id)), (TRACE.into(), PARENT.into()));
    node.wait_status("running");
    node.terminate();
}

#[test]
fn a_change_is_part_of_the_request_that_asked_for_it_and_of_no_other() {
    let (collector, at) = Collector::start();
    let place = Place::new();
    place.configure(&place.spec());
    let node = place.run(traced(&place, at));
    node.wait_status("running");
    let mut spec = place.spec();
    spec["cluster"]["databases"] = serde_json::json!([{ "name": "other", "owner": "somebody" }]);
    let answer = within_a_trace(place.external, "/configure", &config(&spec));
    assert!(answer.starts_with("HTTP/1.1 500"), "{answer}");
    let request = collector.request(&node, "/configure");
    let change = collector.span(&node, "reconfigure");
    assert_eq!(change.parent_span_id, request.span_id);
    // What could not be applied now is, for nobody who waits.
    place.sql("create role somebody");
    assert_eq!(node.refresh(), 200);
    node.wait_status("running");
    let later = node.wait("another change", |_| {
        let other = |span: &Span| span.name == "reconfigure" && span.span_id != change.span_id;
        collector.spans().into_iter().find(other)
    });
    assert!(later.parent_span_id.is_empty() && later.trace_id != change.trace_id, "{later:?}");
    node.terminate();
}

#[test]
fn nothing_waits_for_a_collector_that_is_not_there_or_hangs() {
    let hanging = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    // Whoever takes nothing is told of, once; of one that has not answered yet there is nothing to tell.
    for (collector, told) in [(port(), 1), (hanging.local_addr().unwrap().port(), 0)] {
        let place = Place::new();
        place.configure(&place.spec());
        let mut command = traced(&place, collector);
        // Longer than anything here may take.
        command.env("OTEL_EXPORTER_OTLP_TIMEOUT", "3600000");
        let node = place.run(command);
        node.wait_status("running");
        // A few tries to send.
        for _ in 0..3 {
            assert_eq!(node.configure(&place.spec()).0, 200);
        }
        if told > 0 {
            node.wait_log("the collector of traces does not take them: ");
        }
        node.terminate();
        let log = node.log();
        assert_eq!(log.matches("collector of traces").count(), told, "{log}");
        assert!(!log.contains("ERROR"), "{log}");
    }
}

#[test]
fn traces_are_off_when_they_are_disabled() {
    let (collector, at) = Collector::start();
    let place = Place::new();
    place.configure(&place.spec());
    let mut command = traced(&place, at);
    command.env("OTEL_SDK_DISABLED", "true");
    let node = place.run(command);
    node.wait_status("running");
    node.terminate();
    assert!(collector.requests().is_empty());
}
