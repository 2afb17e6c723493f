//! Whether an answer is what the description of the API says.
//!
//! Of JSON Schema it knows the keywords that the description uses, and fails at any other. It is stricter than the
//! standard in one thing: a key that no schema names is a fault, so that a field cannot be missing from a schema.

use rayguard::admin::openapi::description;
use rayguard::core::time::WallMs;
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::sync::LazyLock;

/// The description of the API.
pub(crate) static DESCRIPTION: LazyLock<Value> = LazyLock::new(description);

/// Fails unless this is described as an answer in JSON.
pub(crate) fn check_answer(method: &str, target: &str, status: u16, body: &Value) {
    let responses = &operation(method, target)["responses"];
    let response = responses.get(status.to_string()).unwrap_or(&responses["default"]);
    fits(&DESCRIPTION, &response["content"]["application/json"]["schema"], body)
        .unwrap_or_else(|fault| panic!("{method} {target}: {fault}"));
}

/// Fails unless an order that was carried out is described.
pub(crate) fn check_order(target: &str, body: &Value) {
    let content = &operation("post", target)["requestBody"]["content"];
    fits(&DESCRIPTION, &content["application/json"]["schema"], body)
        .unwrap_or_else(|fault| panic!("POST {target}: {fault}"));
}

/// Whether a value is described by a schema of `document` with this name.
pub(crate) fn fits_named(document: &Value, name: &str, value: &Value) -> Result<(), String> {
    fits(document, &document["components"]["schemas"][name], value)
}

fn operation(method: &str, target: &str) -> &'static Value {
    &DESCRIPTION["paths"][target.split('?').next().unwrap()][method]
}

/// Whether a whole value is described: all that is said of it holds, and none of its keys goes without a word.
fn fits(document: &Value, schema: &Value, value: &Value) -> Result<(), String> {
    let named = named(document, schema, value)?;
    match keys(value).difference(&named).next() {
        Some(key) => Err(format!("no schema names `{key}` of {value}")),
        None => Ok(()),
    }
}

/// What of the value's keys a schema names, if the value is as it says.
fn named(document: &Value, schema: &Value, value: &Value) -> Result<BTreeSet<String>, String> {
    let none = Map::new();
    let says = match schema {
        Value::Bool(true) => &none,
        Value::Object(says) => says,
        _ => return Err(format!("{schema} allows nothing, and no {value}")),
    };
    const SHAPES: [&str; 5] = ["type", "const", "$ref", "oneOf", "anyOf"];
    if !SHAPES.iter().any(|shape| says.contains_key(*shape)) {
        return Ok(keys(value));
    }
    let mut names = BTreeSet::new();
    for (keyword, of) in says {
        let holds = match keyword.as_str() {
            "description" | "default" => true,
            "type" => list(of).iter().any(|kind| is(value, kind.as_str().unwrap())),
            "const" => value == of,
            "enum" => list(of).contains(value),
            "minimum" => value.as_f64().is_none_or(|number| number >= of.as_f64().unwrap()),
            "maximum" => value.as_f64().is_none_or(|number| number <= of.as_f64().unwrap()),
            "minLength" => {
                value.as_str().is_none_or(|text| text.chars().count() as u64 >= of.as_u64().unwrap())
            }
            "maxLength" => {
                value.as_str().is_none_or(|text| text.chars().count() as u64 <= of.as_u64().unwrap())
            }
            "format" => match of.as_str().unwrap() {
                "date-time" => value.as_str().is_none_or(|text| WallMs::parse_rfc3339(text).is_some()),
                kind => ["double", "float", "uint", "uint8", "uint32", "uint64"].contains(&kind),
            },
            "required" => list(of).iter().all(|key| value.get(key.as_str().unwrap()).is_some()),
            "properties" => {
                for (key, schema) in of.as_object().unwrap() {
                    if let Some(value) = value.get(key) {
                        fits(document, schema, value)?;
                        names.insert(key.clone());
                    }
                }
                true
            }
            "additionalProperties" => {
                for key in keys(value)
                    .iter()
                    .filter(|key| says.get("properties").is_none_or(|of| of.get(key).is_none()))
                {
                    fits(document, of, &value[key])?;
                    names.insert(key.clone());
                }
                true
            }
            "items" => {
                value.as_array().into_iter().flatten().try_for_each(|item| fits(document, of, item))?;
                true
            }
            "$ref" => {
                let target = document.pointer(of.as_str().unwrap().strip_prefix('#').unwrap());
                names.extend(named(document, target.ok_or_else(|| format!("{of} leads nowhere"))?, value)?);
                true
            }
            "oneOf" | "anyOf" => {
                let tried: Vec<_> = list(of).iter().map(|schema| named(document, schema, value)).collect();
                let fit = tried.iter().flatten().count();
                if fit == 0 {
                    return Err(tried.into_iter().filter_map(Result::err).collect::<Vec<_>>().join("; or "));
                }
                names.extend(tried.into_iter().flatten().flatten());
                fit == 1 || keyword == "anyOf"
            }
            _ => return Err(format!("the keyword `{keyword}` is not known here")),
        };
        if !holds {
            return Err(format!("`{keyword}` is {of}, which does not hold of {value}"));
        }
    }
    Ok(names)
}

fn is(value: &Value, kind: &str) -> bool {
    match kind {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => false,
    }
}

/// The list itself; of anything else, that alone.
fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice)
}

fn keys(value: &Value) -> BTreeSet<String> {
    value.as_object().into_iter().flat_map(Map::keys).cloned().collect()
}
