//! Holds answers against the OpenAPI document: known path, listed status, listed content type, and a body of
//! the schema's shape. Knows the part of JSON Schema the document uses, and panics at the rest.

use std::collections::BTreeSet;

use http::Method;
use roost_scheduler::http::BASE;
use serde_json::Value;

use crate::world::Answer;

pub struct Conformance {
    document: Value,
}

impl Conformance {
    pub fn new(document: Value) -> Self {
        Self { document }
    }

    pub fn operations(&self) -> Vec<(Method, String)> {
        let paths = self.document["paths"].as_object().unwrap();
        let all = paths.iter().flat_map(|(path, item)| {
            item.as_object().unwrap().keys().filter_map(|key| {
                let method = key.to_uppercase().parse::<Method>().ok().filter(|_| key != "parameters")?;
                Some((method, path.strip_prefix(BASE).unwrap().to_owned()))
            })
        });
        all.collect()
    }

    /// What the document says of one operation; `template` is the path below the base.
    pub fn operation(&self, method: &str, template: &str) -> &Value {
        &self.document["paths"][format!("{BASE}{template}")][method.to_lowercase()]
    }

    /// The schema of an operation's JSON body, if it takes one.
    pub fn body_schema(&self, method: &str, template: &str) -> Option<&Value> {
        let content =
            self.operation(method, template).pointer("/requestBody/content/application~1json/schema");
        content.map(|schema| self.inner(schema))
    }

    /// The schema without what makes it optional.
    pub fn inner<'a>(&'a self, schema: &'a Value) -> &'a Value {
        let schema = self.resolve(schema);
        let choices = schema.get("oneOf").or_else(|| schema.get("anyOf")).and_then(Value::as_array);
        let real = choices.and_then(|choices| choices.iter().find(|choice| choice["type"] != "null"));
        real.map_or(schema, |real| self.resolve(real))
    }

    /// Whether the document allows `value` where it has `schema`.
    pub fn allows(&self, schema: &Value, value: &Value) -> bool {
        self.judge("value", schema, value, true).is_ok()
    }

    /// Panics if the document does not allow this answer. Paths it does not know must be answered with 404.
    pub fn check(&self, method: &str, path: &str, answer: &Answer) {
        let Some(operation) = self.find(method, path) else {
            assert_eq!(answer.status, 404, "{method} {path} is not in the document");
            self.check_error(answer);
            return;
        };
        if answer.status >= 400 {
            self.check_error(answer);
            return;
        }
        let listed = &operation["responses"][answer.status.to_string()];
        assert!(!listed.is_null(), "{method} {path} does not list {}", answer.status);
        let Some(content) = listed.get("content").and_then(Value::as_object) else {
            assert!(answer.bytes.is_empty(), "{method} {path} lists no body: {}", answer.text());
            return;
        };
        let media = answer.headers["content-type"].to_str().unwrap().split(';').next().unwrap();
        let schema = content.get(media).unwrap_or_else(|| panic!("{method} {path} does not list {media}"));
        if media == "application/json" {
            self.check_value(&format!("{method} {path}"), &schema["schema"], &answer.json());
        }
    }

    /// Panics if a request that was accepted is not one the document shows: its query and its body.
    pub fn check_request(&self, method: &str, path: &str, query: &str, body: &[u8]) {
        let Some(operation) = self.find(method, path) else { return };
        let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
        for name in query.split('&').filter_map(|pair| pair.split('=').next()).filter(|name| !name.is_empty())
        {
            let known = parameters.iter().any(|known| known["in"] == "query" && known["name"] == name);
            assert!(known, "{method} {path} does not show its query parameter {name}");
        }
        let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
        if let (false, Ok(value)) = (schema.is_null(), serde_json::from_slice::<Value>(body)) {
            let judged = self.judge(&format!("{method} {path}"), schema, &value, false);
            assert_eq!(judged, Ok(()), "in {value}");
        }
    }

    fn check_error(&self, answer: &Answer) {
        let schema = serde_json::json!({ "$ref": "#/components/schemas/ErrorEnvelope" });
        self.check_value("error", &schema, &answer.json());
        let code = answer.code();
        let known =
            roost_domain::error_code::Code::find(&code).unwrap_or_else(|| panic!("{code:?} is no code"));
        assert_eq!(known.status(), answer.status, "{code}");
        let id = answer.headers["x-request-id"].to_str().unwrap();
        assert_eq!(answer.json()["error"]["request_id"], id);
    }

    /// The operation whose path template fits, literal segments before parameters.
    fn find(&self, method: &str, path: &str) -> Option<&Value> {
        let paths = self.document["paths"].as_object().unwrap();
        let segments: Vec<&str> = path.split('/').collect();
        let mut fitting: Vec<(usize, &Value)> = paths
            .iter()
            .filter_map(|(template, item)| {
                Some((fit(template, &segments)?, item.get(method.to_lowercase())?))
            })
            .collect();
        fitting.sort_by_key(|(parameters, _)| *parameters);
        fitting.first().map(|(_, operation)| *operation)
    }

    pub fn resolve<'a>(&'a self, schema: &'a Value) -> &'a Value {
        match schema.get("$ref").and_then(Value::as_str) {
            None => schema,
            Some(reference) => {
                let found = self.document.pointer(reference.strip_prefix('#').unwrap());
                self.resolve(found.unwrap_or_else(|| panic!("{reference} leads nowhere")))
            }
        }
    }

    fn check_value(&self, place: &str, schema: &Value, value: &Value) {
        if let Err(problem) = self.judge(place, schema, value, true) {
            panic!("{problem}\nin {value}");
        }
    }

    /// `whole`: the schema describes all of the value, so that a field it does not show is a lie of the
    /// document.
    fn judge(&self, place: &str, schema: &Value, value: &Value, whole: bool) -> Result<(), String> {
        let schema = self.resolve(schema);
        if let Some(choices) = schema.get("oneOf").or_else(|| schema.get("anyOf")).and_then(Value::as_array) {
            let fits = choices.iter().any(|choice| self.judge(place, choice, value, whole).is_ok());
            return if fits { Ok(()) } else { Err(format!("{place} is none of its choices")) };
        }
        for part in schema.get("allOf").and_then(Value::as_array).into_iter().flatten() {
            self.judge(place, part, value, false)?;
        }
        if let Some(words) = schema.get("enum").and_then(Value::as_array)
            && !words.contains(value)
        {
            return Err(format!("{place} is not one of {words:?}"));
        }
        self.judge_type(place, schema, value)?;
        if let Value::Object(fields) = value {
            self.judge_object(place, schema, fields, whole)?;
        }
        if let (Value::Array(items), Some(item_schema)) = (value, schema.get("items")) {
            for (index, item) in items.iter().enumerate() {
                self.judge(&format!("{place}[{index}]"), item_schema, item, true)?;
            }
        }
        Ok(())
    }

    fn judge_type(&self, place: &str, schema: &Value, value: &Value) -> Result<(), String> {
        let wanted: BTreeSet<&str> = match schema.get("type") {
            None => return Ok(()),
            Some(Value::String(one)) => BTreeSet::from([one.as_str()]),
            Some(Value::Array(several)) => several.iter().filter_map(Value::as_str).collect(),
            Some(other) => panic!("{place}: a type {other}"),
        };
        let is: &[&str] = match value {
            Value::Null => &["null"],
            Value::Bool(_) => &["boolean"],
            Value::Number(number) if number.is_f64() => &["number"],
            Value::Number(_) => &["integer", "number"],
            Value::String(_) => &["string"],
            Value::Array(_) => &["array"],
            Value::Object(_) => &["object"],
        };
        if is.iter().any(|is| wanted.contains(is)) {
            Ok(())
        } else {
            Err(format!("{place} is {is:?}, not {wanted:?}"))
        }
    }

    fn judge_object(
        &self,
        place: &str,
        schema: &Value,
        fields: &serde_json::Map<String, Value>,
        whole: bool,
    ) -> Result<(), String> {
        for name in schema.get("required").and_then(Value::as_array).into_iter().flatten() {
            if !fields.contains_key(name.as_str().unwrap()) {
                return Err(format!("{place} lacks {name}"));
            }
        }
        let Some(known) = schema.get("properties").and_then(Value::as_object) else { return Ok(()) };
        for (name, value) in fields {
            match known.get(name) {
                Some(schema) => self.judge(&format!("{place}.{name}"), schema, value, true)?,
                None if whole
                    && schema.get("allOf").is_none()
                    && schema.get("additionalProperties").is_none() =>
                {
                    return Err(format!("{place} has the undocumented field {name}"));
                }
                None => {}
            }
        }
        Ok(())
    }
}

/// How many parameters the template has, if it fits. A parameter called `path` at the end takes the rest.
fn fit(template: &str, segments: &[&str]) -> Option<usize> {
    let template: Vec<&str> = template.split('/').collect();
    let takes_rest = template.last() == Some(&"{path}");
    let lengths = template.len() == segments.len() || (takes_rest && segments.len() > template.len());
    let parameters = template.iter().filter(|part| part.starts_with('{')).count();
    let fits = template.iter().zip(segments).all(|(part, segment)| part.starts_with('{') || part == segment);
    (lengths && fits).then_some(parameters)
}
