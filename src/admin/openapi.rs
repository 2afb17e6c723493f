//! What can be asked, and its description in OpenAPI 3.1.
//!
//! The listener routes by [`OPERATIONS`], so nothing is answered that is not described. Answers and bodies are
//! described by the schemas of their types (`derive(JsonSchema)`), whose documentation becomes the descriptions:
//! a field that is added is described by that. Only what no type says is written here.

use crate::admin::answer::ProblemBody;
use crate::admin::clients::Clients;
use crate::admin::discovery::Discovery;
use crate::admin::history::Columns;
use crate::admin::openapi::Parameter::{Class, Limit, Since};
use crate::admin::schema::{
    Adjustments, Done, Events, FreezeRequest, Limits, ModeRequest, PinRequest, ReloadRequest, Reloaded,
    State, Tested, UnpinRequest,
};
use crate::core::alert::Transition;
use crate::core::controller::view::SignalView;
use schemars::generate::SchemaSettings;
use schemars::transform::RecursiveTransform;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};
use std::sync::LazyLock;

/// One thing that can be asked.
#[derive(Debug)]
pub struct Operation {
    /// Where.
    pub path: &'static str,
    /// `GET` or `POST`.
    pub method: &'static str,
    /// What its query may hold.
    pub parameters: &'static [Parameter],
    summary: &'static str,
    body: Option<SchemaOf>,
    answer: Content,
    /// What a 503 means, where one is answered in plain text.
    unavailable: Option<&'static str>,
}

/// A parameter of a query.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Parameter {
    /// What is older is left out.
    Since,
    /// What is of another class is left out.
    Class,
    /// How many at most.
    Limit,
}

/// Adds the schema of a type, and of all that is in it, to a generator.
type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

#[derive(Clone, Copy, Debug)]
enum Content {
    /// JSON of a type.
    Json(SchemaOf),
    /// Text of one of these media types.
    Text(&'static [&'static str]),
}

/// An object of any keys.
type Object = Map<String, Value>;

/// All that can be asked.
pub static OPERATIONS: [Operation; 22] = [
    text("/", "The operator's page.", &["text/html"]),
    probe(
        "/livez",
        "Liveness: whether the controller still runs.",
        "The controller has stopped: restart the process.",
    ),
    probe(
        "/readyz",
        "Readiness: whether this process takes requests, whatever the health of Ray.",
        "It is draining.",
    ),
    text(
        "/metrics",
        "Metrics for Prometheus, in the text format or OpenMetrics as `Accept` asks.",
        &["text/plain", "application/openmetrics-text"],
    ),
    get::<Object>("/openapi.json", "This description.", &[]),
    get::<State>("/api/v1/state", "The complete current state.", &[]),
    get::<Limits>("/api/v1/limits", "Every limit, its bounds and its override.", &[]),
    get::<Vec<SignalView>>("/api/v1/signals", "Ray's readings, their targets and ages.", &[]),
    get::<Vec<Transition>>("/api/v1/alerts", "Alerts that are firing.", &[]),
    get::<Adjustments>(
        "/api/v1/adjustments",
        "What the control loop changed, and why; newest last.",
        &[Since, Class, Limit],
    ),
    get::<Events>(
        "/api/v1/events",
        "Recent events, except single shed requests; newest last.",
        &[Since, Limit],
    ),
    Operation {
        parameters: &[Since],
        ..text(
            "/api/v1/adjustment-log",
            "The newest lines of the adjustment log as they are on disk, oldest first, at most 32 MiB.",
            &["application/jsonl"],
        )
    },
    get::<Columns>(
        "/api/v1/history",
        "The last quarter of an hour, second by second, in columns of equal length.",
        &[Since, Class],
    ),
    get::<Clients>(
        "/api/v1/clients",
        "The heaviest clients of the last minutes. Addresses are shown only to callers that may make \
            changes; credentials only as a digest.",
        &[Limit],
    ),
    get::<Discovery>(
        "/api/v1/discovery",
        "Usage since the start: every class and route with its clients, requests and cost.",
        &[],
    ),
    post::<PinRequest, Done>("/api/v1/pin", "Hold one limit at a value for a while."),
    post::<UnpinRequest, Done>("/api/v1/unpin", "Let the controller move a pinned limit again."),
    post::<FreezeRequest, Done>("/api/v1/freeze", "Freeze all limits at their current values."),
    post::<FreezeRequest, Done>("/api/v1/unfreeze", "Let all limits move again."),
    post::<ModeRequest, Done>("/api/v1/mode", "Enforce limits or only count sheds, for one class or all."),
    post::<ReloadRequest, Reloaded>(
        "/api/v1/reload",
        "Read the configuration again. 422 with every problem when it is rejected; the previous one then stays in \
         force.",
    ),
    post::<Object, Tested>(
        "/api/v1/alerts/test",
        "Send a test alert to every receiver and return the results. The body's keys are ignored.",
    ),
];

const fn operation(
    method: &'static str,
    path: &'static str,
    summary: &'static str,
    answer: Content,
) -> Operation {
    Operation { path, method, parameters: &[], summary, body: None, answer, unavailable: None }
}

const fn get<T: JsonSchema>(
    path: &'static str,
    summary: &'static str,
    parameters: &'static [Parameter],
) -> Operation {
    Operation {
        parameters,
        ..operation("GET", path, summary, Content::Json(SchemaGenerator::subschema_for::<T>))
    }
}

const fn post<B: JsonSchema, T: JsonSchema>(path: &'static str, summary: &'static str) -> Operation {
    let answer = Content::Json(SchemaGenerator::subschema_for::<T>);
    Operation { body: Some(SchemaGenerator::subschema_for::<B>), ..operation("POST", path, summary, answer) }
}

const fn text(path: &'static str, summary: &'static str, kinds: &'static [&'static str]) -> Operation {
    operation("GET", path, summary, Content::Text(kinds))
}

const fn probe(path: &'static str, summary: &'static str, unavailable: &'static str) -> Operation {
    Operation { unavailable: Some(unavailable), ..text(path, summary, &["text/plain"]) }
}

impl Parameter {
    /// Its name in a query.
    pub fn name(self) -> &'static str {
        match self {
            Since => "since",
            Class => "class",
            Limit => "limit",
        }
    }

    fn described(self) -> Value {
        let (description, schema) = match self {
            Since => (
                "Only after this: a duration before now (`15m`), RFC 3339 in UTC, or milliseconds since 1970.",
                json!({ "type": "string" }),
            ),
            Class => ("Only of this class.", json!({ "type": "string" })),
            Limit => (
                "Maximum number: the newest, or the heaviest.",
                json!({ "type": "integer", "minimum": 1, "maximum": 1000 }),
            ),
        };
        json!({ "name": self.name(), "in": "query", "description": description, "schema": schema })
    }
}

impl Operation {
    fn described(&self, answers: &mut SchemaGenerator, bodies: &mut SchemaGenerator) -> Value {
        let typed = |schema: Schema| json!({ "application/json": { "schema": schema } });
        let untyped = |kinds: &[&str]| -> Value {
            let kind = |kind: &&str| ((*kind).to_owned(), json!({ "schema": { "type": "string" } }));
            Value::Object(kinds.iter().map(kind).collect())
        };
        let content = match self.answer {
            Content::Json(schema) => typed(schema(answers)),
            Content::Text(kinds) => untyped(kinds),
        };
        let mut operation = json!({
            "summary": self.summary,
            "parameters": self.parameters.iter().map(|parameter| parameter.described()).collect::<Vec<_>>(),
            "responses": {
                "200": { "description": "OK.", "content": content },
                "default": {
                    "description": "Rejected; the body says why and what to do.",
                    "content": typed(answers.subschema_for::<ProblemBody>()),
                },
            },
        });
        if let Some(description) = self.unavailable {
            operation["responses"]["503"] =
                json!({ "description": description, "content": untyped(&["text/plain"]) });
        }
        if let Some(body) = self.body {
            operation["security"] = json!([{ "token": [] }, {}]);
            operation["requestBody"] = json!({ "required": true, "content": typed(body(bodies)) });
        }
        operation
    }
}

/// The description as it is served.
pub static DESCRIPTION: LazyLock<String> = LazyLock::new(|| format!("{:#}\n", description()));

/// The description of the API.
pub fn description() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
    });
    // A default is for readers of an older answer, which lacks the field; every answer of this version has it.
    let no_defaults = RecursiveTransform(|schema: &mut Schema| {
        schema.remove("default");
    });
    let mut answers = settings.clone().for_serialize().with_transform(no_defaults).into_generator();
    let mut bodies = settings.for_deserialize().into_generator();
    let paths: Map<String, Value> = OPERATIONS
        .iter()
        .map(|operation| {
            let described = operation.described(&mut answers, &mut bodies);
            (operation.path.to_owned(), json!({ operation.method.to_lowercase(): described }))
        })
        .collect();
    let mut schemas = bodies.take_definitions(true);
    for (name, schema) in answers.take_definitions(true) {
        let read = schemas.insert(name, schema.clone());
        debug_assert!(
            read.is_none_or(|read| read == schema),
            "a type is read otherwise than it is sent: {schema}"
        );
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "rayguard admin API",
            "version": "1",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
            "description": "State, history and overrides of one rayguard. Reading needs no token. Changes need the \
                configured bearer token or, where none is configured, a client on the same machine. The Host header must be an IP address, localhost or a name in `admin.hosts`; requests from other origins are rejected.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } },
        },
    })
}
