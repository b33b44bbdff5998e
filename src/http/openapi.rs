//! What a server says of itself: `GET /openapi.json`.
//!
//! Each [`Operation`] carries what is written of it here, and the document is made of the operations which the server
//! serves, so there is no route without a description and no description without a route. What belongs to all of them
//! (the request id, tokens, faults of a body) is added in here. Adding a route: a function in `external` or `internal`
//! beside the others, and if it has a body of its own a schema in `schemas`.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::auth::Auth;
use super::dispatch::{Access, Handled, Operation, Request};
use super::response;
use super::server::Side;

pub(super) mod external;
pub(super) mod internal;
mod schemas;

const JSON: &str = "application/json";
const PLAIN: &str = "text/plain; charset=utf-8";

/// What is written of an operation.
pub(super) struct About {
    summary: &'static str,
    parameters: Vec<Value>,
    body: Option<Value>,
    /// By their code, or `default`.
    answers: BTreeMap<String, Answer>,
}

#[derive(Default)]
struct Answer {
    meanings: Vec<String>,
    /// Schemas by their media type.
    content: BTreeMap<&'static str, Value>,
}

/// How faults of a request are worded.
#[derive(Clone, Copy, Debug)]
pub(super) enum Family {
    /// `{"error": …}`.
    Json,
    /// Bare text.
    Plain,
}

impl About {
    fn new(summary: &'static str) -> Self {
        About { summary, parameters: Vec::new(), body: None, answers: BTreeMap::new() }
    }

    /// A parameter behind the question mark. Without one that must be there the answer is 400.
    fn query(mut self, name: &str, required: bool, schema: Value, family: Family) -> Self {
        self.parameters.push(json!({ "name": name, "in": "query", "required": required, "schema": schema }));
        self.fault(400, family, "the query is not what it should be")
    }

    /// A JSON body of this schema and of at most `limit` bytes.
    fn body(mut self, schema: &str, limit: usize, family: Family) -> Self {
        self.body = Some(json!({
            "required": true,
            "description": format!(
                "At most {limit} bytes. `application/*+json` is taken too; what follows the first JSON value is ignored."
            ),
            "content": { JSON: { "schema": schemas::named(schema) } },
        }));
        self.fault(400, family, "the body is not JSON, or breaks off")
            .fault(408, family, "the body does not arrive in time")
            .fault(413, family, "the body is too long")
            .fault(415, family, "the content type is not JSON")
            .fault(422, family, "the body is JSON of another shape")
            .error(503, "too many bodies are being read")
    }

    /// An answer with a JSON body.
    fn answer(self, code: u16, schema: Value, meaning: &str) -> Self {
        self.content(&code.to_string(), JSON, schema, meaning)
    }

    /// An answer without a body.
    fn empty(mut self, code: u16, meaning: &str) -> Self {
        self.entry(&code.to_string(), meaning);
        self
    }

    /// `{"error": …}`.
    fn error(self, code: u16, meaning: &str) -> Self {
        self.answer(code, schemas::named("Error"), meaning)
    }

    fn fault(self, code: u16, family: Family, meaning: &str) -> Self {
        match family {
            Family::Json => self.error(code, meaning),
            Family::Plain => self.content(&code.to_string(), PLAIN, json!({ "type": "string" }), meaning),
        }
    }

    fn content(mut self, code: &str, media_type: &'static str, schema: Value, meaning: &str) -> Self {
        self.entry(code, meaning).content.insert(media_type, schema);
        self
    }

    fn entry(&mut self, code: &str, meaning: &str) -> &mut Answer {
        let answer = self.answers.entry(code.to_owned()).or_default();
        answer.meanings.push(meaning.to_owned());
        answer
    }

    /// Works with Postgres, which may not be there.
    fn of_postgres(self) -> Self {
        self.error(500, "Postgres does not do it, or is not there")
            .error(503, "too many requests wait for Postgres")
    }

    /// Only in status `running`.
    fn while_running(self) -> Self {
        self.error(412, "the status is not `running`")
    }

    /// Goes through the state machine.
    fn of_machine(self) -> Self {
        self.error(503, "too many requests wait, or the process is about to end")
    }
}

/// The document of a server that serves these operations.
pub(super) fn document(side: Side, auth: &Auth, operations: &[Operation]) -> Value {
    let mut paths: Map<String, Value> = Map::new();
    for operation in operations {
        // What is below a directory is a parameter like any other here.
        let path = operation.path.replace("{*", "{");
        let described = describe(operation, &path, auth);
        let item = paths.entry(path).or_insert_with(|| json!({}));
        if operation.method == "GET" {
            item["head"] = without_bodies(described.clone());
        }
        item[operation.method.as_str().to_lowercase()] = described;
    }
    let mut components = json!({
        "schemas": schemas::all(),
        "headers": {
            "x-request-id": {
                "description": "The request's, or a new UUID.",
                "required": true,
                "schema": { "type": "string" },
            },
            "retry-after": { "description": "Seconds.", "schema": { "type": "integer", "minimum": 0 } },
        },
        "parameters": {
            "x-request-id": {
                "name": "x-request-id",
                "in": "header",
                "description": "By which the request is found in the logs: visible ASCII.",
                "schema": { "type": "string", "pattern": "^[\\t -~]*$" },
            },
        },
    });
    if operations.iter().any(|operation| needs_token(operation, auth)) {
        components["securitySchemes"] = json!({
            "token": {
                "type": "http",
                "scheme": "bearer",
                "bearerFormat": "JWT",
                "description": "EdDSA or RS256, verified with the key set of the config. Either its `compute_id` is that \
                                of this compute, or its `scope` is `compute_ctl:admin` and its `aud` has `compute`.",
            },
        });
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": format!("compute_ctl, {side} server"),
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Other paths are 404 and other methods 405 with `allow`, both without a body and without \
                            asking for a token. Every answer carries `x-request-id`.",
        },
        "servers": [{ "url": "/" }],
        "paths": paths,
        "components": components,
    })
}

/// The answer of `GET /openapi.json`.
pub(super) async fn serve(Request { shared, .. }: Request) -> Handled {
    Ok(response::document(shared.document.clone()))
}

/// What is written of `GET /openapi.json` itself.
pub(super) fn openapi() -> About {
    About::new("This document").answer(200, json!({ "type": "object" }), "OpenAPI 3.1")
}

fn needs_token(operation: &Operation, auth: &Auth) -> bool {
    operation.access == Access::Token && !auth.is_open()
}

fn describe(operation: &Operation, path: &str, auth: &Auth) -> Value {
    let About { summary, parameters, body, answers } = &operation.about;
    let mut parameters = parameters.clone();
    if let Some((_, name)) = path.split_once('{') {
        let name = name.trim_end_matches('}');
        let schema = json!({ "type": "string", "minLength": 1 });
        let more = "May have slashes.";
        parameters.push(
            json!({ "name": name, "in": "path", "required": true, "description": more, "schema": schema }),
        );
    }
    parameters.push(json!({ "$ref": "#/components/parameters/x-request-id" }));
    let mut responses = json!({});
    let error = schemas::named("Error");
    let common = Answer {
        meanings: vec!["`x-request-id` is not visible ASCII".to_owned()],
        content: [(JSON, error.clone())].into(),
    };
    add(&mut responses, "400", &common);
    if operation.access == Access::Token {
        let mut denied = vec![("403", "a web page asks, which is only for clients with a token")];
        if needs_token(operation, auth) {
            denied = vec![
                ("400", "there is no token"),
                ("401", "the token is not verified, or meant for others"),
                ("403", "the token is for another compute"),
            ];
        }
        for (code, meaning) in denied {
            let content = [(JSON, error.clone())].into();
            add(&mut responses, code, &Answer { meanings: vec![meaning.to_owned()], content });
        }
    }
    if operation.access == Access::Local {
        let content = [(JSON, error.clone())].into();
        let meanings =
            vec!["a web page asks, or the request was sent to a name that is not this machine's".to_owned()];
        add(&mut responses, "403", &Answer { meanings, content });
    }
    for (code, answer) in answers {
        add(&mut responses, code, answer);
    }
    let mut described = json!({ "summary": summary, "parameters": parameters, "responses": responses });
    if let Some(body) = body {
        described["requestBody"] = body.clone();
    }
    if needs_token(operation, auth) {
        described["security"] = json!([{ "token": [] }]);
    }
    described
}

/// Adds to what is written of a code already.
fn add(responses: &mut Value, code: &str, answer: &Answer) {
    let response = &mut responses[code];
    if response.is_null() {
        let mut headers = json!({ "x-request-id": { "$ref": "#/components/headers/x-request-id" } });
        if code == "503" {
            headers["retry-after"] = json!({ "$ref": "#/components/headers/retry-after" });
        }
        *response = json!({ "description": "", "headers": headers });
    }
    for meaning in &answer.meanings {
        let before = response["description"].as_str().unwrap_or_default();
        let separator = if before.is_empty() { "" } else { "; or " };
        response["description"] = format!("{before}{separator}{meaning}").into();
    }
    for (media_type, schema) in &answer.content {
        response["content"][*media_type] = json!({ "schema": schema });
    }
}

/// The same for HEAD.
fn without_bodies(mut described: Value) -> Value {
    for response in described["responses"].as_object_mut().into_iter().flat_map(Map::values_mut) {
        if let Some(response) = response.as_object_mut() {
            response.remove("content");
        }
    }
    described
}
