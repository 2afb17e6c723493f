//! From text to [`Raw`], with every slip of grammar, key and type reported at once.
//!
//! serde stops at the first error. Here that error is noted, the offending entry is taken
//! out of the document, and serde is asked again, until the rest is sound. Each round takes
//! one entry away, so it ends; after [`PROBLEMS_MAX`] rounds it stops: no operator reads more.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue, Deserializer};

use super::keys::Raw;
use super::problem::{Problem, suggest};
use super::renamed;
use super::value::{Value, Words};
use rayguard_core::admission::table::Mode;

/// What the command line puts over the file.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `--upstream`.
    pub upstream: Option<String>,
    /// `--listen`: takes the place of every listener of the file.
    pub listen: Option<String>,
    /// `--mode`.
    pub mode: Option<Mode>,
    /// `--prometheus`.
    pub prometheus: Option<String>,
    /// `--state-dir`.
    pub state_dir: Option<String>,
}

/// Problems reported for one file.
const PROBLEMS_MAX: usize = 100;

/// What the text says, as far as it could be understood.
pub(super) struct Document<'a> {
    pub(super) raw: Raw,
    /// What was understood, with places.
    table: DeTable<'a>,
    /// Where the text ends; what the command line says stands beyond.
    end: usize,
}

/// What the text says with `overrides` laid over it, and what could not be understood.
pub(super) fn read<'a>(text: &'a str, overrides: &Overrides) -> (Document<'a>, Vec<Problem>) {
    let (parsed, errors) = DeTable::parse_recoverable(text);
    let (whole, mut table) = (parsed.span(), parsed.into_inner());
    let mut problems: Vec<Problem> = errors.iter().take(PROBLEMS_MAX).map(grammar).collect();
    lay_over(&mut table, overrides, text.len());
    while problems.len() < PROBLEMS_MAX {
        match Raw::read(Deserializer::from(Spanned::new(whole.clone(), table.clone()))) {
            Ok(raw) => return (Document { raw, table, end: text.len() }, problems),
            Err(error) => {
                let taken = error.span().and_then(|span| take(&mut table, &span));
                let key = taken.as_deref().unwrap_or_default();
                let mut problem = wrong(&error, key);
                problem.span = problem.span.filter(|span| span.start <= text.len());
                problems.push(problem);
                if taken.is_none() {
                    break;
                }
            }
        }
    }
    (Document { raw: Raw::default(), table, end: text.len() }, problems)
}

/// Puts what the command line says in the place of what the file does.
fn lay_over(table: &mut DeTable<'_>, overrides: &Overrides, end: usize) {
    // Beyond the text: no place in the file, and no two alike.
    let mut at = end + 1;
    let mut put = |table: &mut DeTable<'_>, key: &'static str, value: DeValue<'static>| {
        table.remove(key);
        table.insert(Spanned::new(at..at + 1, key.into()), Spanned::new(at + 1..at + 2, value));
        at += 2;
    };
    let mode = overrides.mode.map(|mode| mode.word().to_owned());
    for (key, value) in [
        ("upstream", &overrides.upstream),
        ("listen", &overrides.listen),
        ("mode", &mode),
        ("state_dir", &overrides.state_dir),
    ] {
        if let Some(value) = value {
            put(table, key, DeValue::String(value.clone().into()));
        }
    }
    if let Some(value) = &overrides.prometheus {
        if !table.contains_key("metrics") {
            put(table, "metrics", DeValue::Table(DeTable::new()));
        }
        if let Some(DeValue::Table(metrics)) = table.get_mut("metrics").map(Spanned::get_mut) {
            put(metrics, "prometheus", DeValue::String(value.clone().into()));
        }
    }
}

impl Document<'_> {
    /// Whether the file or the command line has this key, and it was understood.
    pub(super) fn has(&self, key: &str) -> bool {
        place(&self.table, key).is_some_and(|(_, whole)| whole)
    }

    /// Where this key stands in the file, or the nearest table around it.
    pub(super) fn span(&self, key: &str) -> Option<Range<usize>> {
        place(&self.table, key).map(|(span, _)| span).filter(|span| span.start <= self.end)
    }
}

/// The place of a value, of the name of a table, or of what is nearest around it; and which.
fn place(table: &DeTable<'_>, key: &str) -> Option<(Range<usize>, bool)> {
    let (name, value, rest) = table.iter().find_map(|(name, value)| {
        let rest = key.strip_prefix(name.get_ref().as_ref())?;
        (rest.is_empty() || rest.starts_with(['.', '['])).then_some((name, value, rest))
    })?;
    let own = if matches!(value.get_ref(), DeValue::Table(_)) { name.span() } else { value.span() };
    place_within(value, rest).or(Some((own, rest.is_empty())))
}

fn place_within(value: &Spanned<DeValue<'_>>, rest: &str) -> Option<(Range<usize>, bool)> {
    match value.get_ref() {
        DeValue::Table(table) => place(table, rest.strip_prefix('.')?),
        DeValue::Array(array) => {
            let (at, rest) = rest.strip_prefix('[')?.split_once(']')?;
            let element = array.get(at.parse::<usize>().ok()?)?;
            place_within(element, rest).or(Some((element.span(), rest.is_empty())))
        }
        _ => None,
    }
}

/// A slip of TOML itself.
fn grammar(error: &toml::de::Error) -> Problem {
    let message = error.message();
    let remedy = message
        .starts_with("duplicate key")
        .then(|| "the same key or table is defined twice; merge the two, or remove one".to_owned());
    Problem { span: error.span(), key: String::new(), message: message.to_owned(), remedy }
}

/// A slip that serde found: unknown key, unknown word, wrong type, quantity that cannot be read.
fn wrong(error: &toml::de::Error, key: &str) -> Problem {
    let message = error.message().lines().next().unwrap_or_default();
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let (message, remedy) =
        if let Some(new) = renamed::key(key).filter(|_| message.starts_with("unknown field")) {
            ("this key has a new name".to_owned(), Some(format!("write `{new}`")))
        } else if message.starts_with("unknown field") && !quoted.is_empty() {
            ("unknown key".to_owned(), suggest(quoted[0], quoted[1..].iter().copied()))
        } else if message.ends_with("expected struct SecretTable") {
            let remedy = "write { file = \"/path\" } or { env = \"NAME\" }";
            ("a secret is not written in the configuration itself".to_owned(), Some(remedy.to_owned()))
        } else if let Some((message, remedy)) = message.split_once("; ") {
            (message.to_owned(), Some(remedy.to_owned()))
        } else {
            (message.to_owned(), None)
        };
    Problem { span: error.span(), key: key.to_owned(), message, remedy }
}

/// Takes the deepest entry that covers `span` out of the table and returns its dotted path.
fn take(table: &mut DeTable<'_>, span: &Range<usize>) -> Option<String> {
    let covers = |outer: &Range<usize>| outer.start <= span.start && span.end <= outer.end;
    // By its key first: a table's own span may be no more than its header.
    let found = table.iter().find_map(|(key, value)| {
        let (key_span, value_span) = (key.span(), value.span());
        let inside = holds(value, span);
        (covers(&key_span) || covers(&value_span) || inside).then(|| (key.get_ref().to_string(), key_span))
    });
    let (name, key_span) = found?;
    if !covers(&key_span)
        && let Some(value) = table.get_mut(name.as_str())
        && let Some(inner) = take_within(value, span)
    {
        return Some(format!("{name}.{inner}").replace(".[", "["));
    }
    table.remove(name.as_str()).map(|_| name)
}

fn take_within(value: &mut Spanned<DeValue<'_>>, span: &Range<usize>) -> Option<String> {
    match value.get_mut() {
        DeValue::Table(table) => take(table, span),
        DeValue::Array(array) => take_element(array, span),
        _ => None,
    }
}

fn take_element(array: &mut DeArray<'_>, span: &Range<usize>) -> Option<String> {
    let covers = |outer: &Range<usize>| outer.start <= span.start && span.end <= outer.end;
    let place = array
        .iter()
        .position(|element| holds(element, span))
        .or_else(|| array.iter().position(|element| covers(&element.span())))?;
    if let Some(inner) = array.get_mut(place).and_then(|element| take_within(element, span)) {
        return Some(format!("[{place}].{inner}").replace(".[", "["));
    }
    // `DeArray` cannot remove; the rest is put into a new one.
    *array = array.iter().enumerate().filter(|(i, _)| *i != place).map(|(_, e)| e.clone()).collect();
    Some(format!("[{place}]"))
}

/// Whether a key or value within `value` covers `span`.
fn holds(value: &Spanned<DeValue<'_>>, span: &Range<usize>) -> bool {
    let covers = |outer: &Range<usize>| outer.start <= span.start && span.end <= outer.end;
    match value.get_ref() {
        DeValue::Table(table) => table
            .iter()
            .any(|(key, value)| covers(&key.span()) || covers(&value.span()) || holds(value, span)),
        DeValue::Array(array) => array.iter().any(|element| covers(&element.span()) || holds(element, span)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn found(text: &str) -> Vec<(String, String)> {
        read(text, &Overrides::default())
            .1
            .into_iter()
            .map(|problem| (problem.key, problem.message))
            .collect()
    }

    #[test]
    fn every_slip_of_a_file_is_found_in_one_round() {
        let text = "
            mood = 'enforce'
            mode = 'enforced'
            [http]
            idle_timeout = 30
            conections_max = 5
            [class.job-submit]
            rate = { initial = '2', max = '5/s', brust = 3 }
            in_flight = 'many'
            [[listen]]
            adress = '127.0.0.1:1'
            [[route]]
            path = 7
        ";
        let keys: Vec<String> = found(text).into_iter().map(|(key, _)| key).collect();
        for key in [
            "mood",
            "mode",
            "http.idle_timeout",
            "http.conections_max",
            "class.job-submit.rate.initial",
            "class.job-submit.rate.brust",
            "class.job-submit.in_flight",
            "listen[0].adress",
            "route[0].path",
        ] {
            assert!(keys.iter().any(|found| found == key), "{key} is missing from {keys:?}");
        }
        assert_eq!(keys.len(), 9, "{keys:?}");
    }

    #[test]
    fn an_unknown_key_is_answered_with_the_one_that_was_meant() {
        let (_, problems) = read("[class.job-submit]\nper_clint = {}\n", &Overrides::default());
        assert_eq!(problems[0].message, "unknown key");
        assert_eq!(problems[0].remedy.as_deref(), Some("did you mean `per_client`?"));
        assert_eq!(problems[0].span, Some(19..28));
    }

    #[test]
    fn a_class_that_stands_twice_is_refused() {
        let problems = found("[class.a]\npriority = 1\n[class.a]\npriority = 2\n");
        // The table, and the key in it.
        assert!(!problems.is_empty());
        assert!(problems.iter().all(|(_, message)| message == "duplicate key"), "{problems:?}");
    }

    #[test]
    fn what_is_sound_is_kept_when_something_else_is_not() {
        let (document, problems) = read("mode = 'shadow'\nnonsense = 1\n", &Overrides::default());
        assert_eq!(problems.len(), 1);
        assert!(document.has("mode") && !document.has("nonsense"));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,200}") {
            let _ = read(&text, &Overrides::default());
        }

        #[test]
        fn no_toml_like_text_panics(lines in proptest::collection::vec(
            "(\\[\\[?[a-z.]{1,12}\\]\\]?|[a-z_.]{1,14} = (\"[a-z0-9/ .]{0,8}\"|-?[0-9.e]{1,6}|nan|inf|true|\\{[a-z]{1,4} = 1\\}|\\[[0-9, ]{0,6}\\]))",
            0..12,
        )) {
            let _ = read(&lines.join("\n"), &Overrides::default());
        }
    }
}
