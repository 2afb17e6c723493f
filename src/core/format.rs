//! Numbers and foreign text as people read them.

/// Three significant digits at most, without superfluous zeros.
pub fn number(value: f64) -> String {
    if !value.is_finite() {
        return "unknown".into();
    }
    let size = value.abs();
    let decimals = if size >= 100.0 || size == 0.0 {
        0
    } else if size >= 10.0 {
        1
    } else if size >= 1.0 {
        2
    } else if size >= 0.1 {
        3
    } else {
        4
    };
    let text = format!("{value:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// A number with its unit, in a unit that suits its size.
pub fn quantity(value: f64, unit: &str) -> String {
    match unit {
        "" => number(value),
        "s" if value.is_finite() && value.abs() < 1.0 => format!("{} ms", number(value * 1e3)),
        "s" if value.is_finite() && value.abs() >= 120.0 => format!("{} min", number(value / 60.0)),
        "ms" if value.is_finite() && value.abs() >= 1e3 => format!("{} s", number(value / 1e3)),
        _ => format!("{} {unit}", number(value)),
    }
}

/// Text as it may go to a terminal: control characters, and those that reorder or hide text,
/// become `\u{..}`.
pub fn printable(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for c in text.chars() {
        let hides = matches!(c,
            '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
        if c.is_control() || hides {
            clean.extend(c.escape_unicode());
        } else {
            clean.push(c);
        }
    }
    clean
}

/// Why Ray cannot be used: it does not answer, or it does and says that it is not well.
pub fn upstream_words(problem: &str) -> String {
    let state = if problem.starts_with("answered") { "fails its health check" } else { "is unreachable" };
    format!("Ray {state}: {problem}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_that_answers_its_health_check_badly_is_not_called_unreachable() {
        assert_eq!(
            upstream_words("answered with status 503"),
            "Ray fails its health check: answered with status 503"
        );
        assert_eq!(
            upstream_words("no connection: connection refused"),
            "Ray is unreachable: no connection: connection refused"
        );
    }
}
