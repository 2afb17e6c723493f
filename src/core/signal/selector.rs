//! Metric selectors as Prometheus writes them: `ray_tasks{State=~"PENDING.*",IsRetry!="1"}`.
//!
//! A small, honest part of PromQL: equality, inequality, and the two regular expressions
//! that selectors in the wild mostly are, a prefix (`=~"PENDING.*"`) and a choice
//! (`=~"A|B"`). Anything else is refused rather than half understood; a full expression
//! belongs into a `promql` source, where a Prometheus server evaluates it.

use std::fmt::Write as _;
use std::sync::Arc;

use crate::policy::{LabelCondition, Selector};

/// Why a selector was not understood.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ParseError {
    /// The name is not a metric name.
    #[error("`{0}` is not a metric name; it consists of letters, digits, `_` and `:`")]
    Name(String),
    /// Something is wrong between the braces.
    #[error(
        "`{0}` is not a label condition; write {{Label=\"value\"}}, {{Label!=\"value\"}} or {{Label=~\"a|b\"}}"
    )]
    Condition(String),
    /// A regular expression beyond prefix and choice.
    #[error("`{0}` is more than a prefix (\"a.*\") or a choice (\"a|b\"); use a `promql` source for it")]
    Pattern(String),
}

/// Reads a selector.
pub fn parse(text: &str) -> Result<Selector, ParseError> {
    let text = text.trim();
    let (name, rest) = text.split_at(text.find('{').unwrap_or(text.len()));
    let name = name.trim_end();
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    if name.is_empty() || !name.chars().all(is_name) || name.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(ParseError::Name(name.to_owned()));
    }
    let mut labels = Vec::new();
    if !rest.is_empty() {
        let parse_error = || ParseError::Condition(rest.to_owned());
        let mut inside =
            rest.strip_prefix('{').and_then(|r| r.strip_suffix('}')).ok_or_else(parse_error)?.trim();
        while !inside.is_empty() {
            let (condition, after) = condition(inside)?;
            labels.push(condition);
            let after = after.trim_start();
            inside = match after.strip_prefix(',') {
                Some(next) => next.trim_start(),
                None if after.is_empty() => after,
                None => return Err(ParseError::Condition(after.to_owned())),
            };
        }
    }
    Ok(Selector { metric: name.into(), labels })
}

/// One condition and what follows it.
fn condition(text: &str) -> Result<(LabelCondition, &str), ParseError> {
    let parse_error = || ParseError::Condition(text.to_owned());
    let split = text.find(['=', '!']).ok_or_else(parse_error)?;
    let label = text[..split].trim();
    if label.is_empty() || !label.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        return Err(parse_error());
    }
    let operator = ["=~", "!=", "!~", "="]
        .into_iter()
        .find(|operator| text[split..].starts_with(operator))
        .ok_or_else(parse_error)?;
    let (value, after) = quoted(text[split + operator.len()..].trim_start()).ok_or_else(parse_error)?;
    let label: Arc<str> = label.into();
    let condition = match operator {
        "=" => LabelCondition::Is(label, value.into()),
        "!=" => LabelCondition::IsNot(label, value.into()),
        "=~" => pattern(label, &value)?,
        _ => return Err(ParseError::Pattern(text.to_owned())),
    };
    Ok((condition, after))
}

/// A quoted string with Prometheus' escapes, and what follows it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let body = text.strip_prefix('"')?;
    let mut value = String::new();
    let mut chars = body.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &body[at + 1..])),
            '\\' => value.push(match chars.next()?.1 {
                'n' => '\n',
                other @ ('\\' | '"') => other,
                _ => return None,
            }),
            _ => value.push(c),
        }
    }
    None
}

fn pattern(label: Arc<str>, pattern: &str) -> Result<LabelCondition, ParseError> {
    let literal =
        |part: &str| !part.contains(['.', '*', '+', '?', '(', ')', '[', ']', '^', '$', '\\', '{', '}', '|']);
    if let Some(prefix) = pattern.strip_suffix(".*")
        && literal(prefix)
    {
        return Ok(LabelCondition::StartsWith(label, prefix.into()));
    }
    if pattern.split('|').all(literal) {
        return Ok(LabelCondition::OneOf(label, pattern.split('|').map(Arc::from).collect()));
    }
    Err(ParseError::Pattern(pattern.to_owned()))
}

/// Writes a selector so that [`parse`] reads it back.
pub fn write(selector: &Selector) -> String {
    let mut out = selector.metric.to_string();
    for (i, condition) in selector.labels.iter().enumerate() {
        let (label, operator, value) = match condition {
            LabelCondition::Is(label, value) => (label, "=", value.to_string()),
            LabelCondition::IsNot(label, value) => (label, "!=", value.to_string()),
            LabelCondition::StartsWith(label, prefix) => (label, "=~", format!("{prefix}.*")),
            LabelCondition::OneOf(label, values) => (label, "=~", values.join("|")),
        };
        let escaped = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let before = if i == 0 { '{' } else { ',' };
        // invariant: writing to a String cannot fail.
        let _ = write!(out, "{before}{label}{operator}\"{escaped}\"");
    }
    if !selector.labels.is_empty() {
        out.push('}');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn selectors_read_as_prometheus_writes_them() {
        let selector =
            parse(r#"ray_tasks{State=~"PENDING.*", IsRetry!="1",Name="a\"b",Kind=~"x|y"}"#).unwrap();
        assert_eq!(&*selector.metric, "ray_tasks");
        assert_eq!(
            selector.labels,
            [
                LabelCondition::StartsWith("State".into(), "PENDING".into()),
                LabelCondition::IsNot("IsRetry".into(), "1".into()),
                LabelCondition::Is("Name".into(), "a\"b".into()),
                LabelCondition::OneOf("Kind".into(), vec!["x".into(), "y".into()]),
            ]
        );
        assert_eq!(parse("up").unwrap().labels, []);
        assert_eq!(parse("up{}").unwrap().labels, []);
    }

    #[test]
    fn what_would_be_half_understood_is_refused() {
        for text in
            ["", "{}", "9lives", "sum(x)", "x{", "x{a}", "x{a=b}", "x{a=\"b\" c=\"d\"}", "rate(x[5m])"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
        assert_eq!(parse(r#"x{a=~"b.+c"}"#), Err(ParseError::Pattern("b.+c".into())));
        assert!(matches!(parse(r#"x{a!~"b"}"#), Err(ParseError::Pattern(_))));
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(metric in "[a-z_:][a-z0-9_:]{0,10}", values in proptest::collection::vec("[a-zA-Z_\"\\\\\n ]{0,8}", 0..4)) {
            let labels = values.iter().map(|value| LabelCondition::Is("label".into(), value.as_str().into())).collect();
            let selector = Selector { metric: metric.as_str().into(), labels };
            prop_assert_eq!(parse(&write(&selector)), Ok(selector));
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,60}", tail in "[a-z]\\{[a-z=!~\"\\\\|.*,]{0,20}\\}?") {
            let _ = parse(&text);
            let _ = parse(&tail);
        }
    }
}
