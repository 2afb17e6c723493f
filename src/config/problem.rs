//! What is wrong with a file: every problem at once, each with its line, a caret, the value,
//! the bound it breaks and a remedy.
//!
//! An operator who mends a file at 3 a.m. should need one round, not one round per slip.
//! So nothing here stops at the first problem; `document` and `checked` collect them, and
//! this room sorts and draws them (with annotate-snippets, in the manner of rustc).
//!
//! What is drawn is logged, shown on the page and pasted into chats. A secret has no place in the
//! file, which is exactly why it may stand in a line that is drawn: it is drawn as stars.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet, renderer::DecorStyle};

/// One thing that is wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// Where in the file, in bytes; `None` for what is missing or came from the command line.
    pub span: Option<Range<usize>>,
    /// The key, as a dotted path (`class.job-submit.rate.min`), or the option (`--upstream`).
    pub key: String,
    /// What is wrong: a lower-case sentence with the value and the bound.
    pub message: String,
    /// What to do about it.
    pub remedy: Option<String>,
}

/// Everything that is wrong with one file, in the order of its lines; never empty.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problems {
    file: Arc<str>,
    text: Arc<str>,
    list: Vec<Problem>,
}

impl Problems {
    /// The problems of `file`, whose content is `text`.
    #[must_use]
    pub fn new(file: &str, text: &str, mut list: Vec<Problem>) -> Problems {
        list.sort_by_key(|problem| problem.span.as_ref().map_or(0, |span| span.start));
        list.dedup();
        Problems { file: file.into(), text: mask(text).into(), list }
    }

    /// One by one.
    pub fn list(&self) -> &[Problem] {
        &self.list
    }

    /// The file's name, as it was given.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Line and column of a problem, both from 1; `None` when it has no place in the file.
    pub fn position(&self, problem: &Problem) -> Option<(usize, usize)> {
        let start = problem.span.as_ref()?.start;
        let before = self.text.get(..start)?;
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Some((before.matches('\n').count() + 1, before[line_start..].chars().count() + 1))
    }

    /// All of it for a terminal: source line, caret, remedy.
    pub fn render(&self, colour: bool) -> String {
        let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
        let renderer = renderer.decor_style(DecorStyle::Ascii);
        let count = self.list.len();
        let plural = if count == 1 { "problem" } else { "problems" };
        let mut parts: Vec<String> =
            self.list.iter().map(|problem| self.render_one(&renderer, problem)).collect();
        parts.push(format!("{count} {plural} in {}", self.file));
        parts.join("\n\n")
    }

    fn render_one(&self, renderer: &Renderer, problem: &Problem) -> String {
        let message = display_safe(&problem.message);
        let title = match problem.key.as_str() {
            "" => message,
            key => format!("{}: {message}", display_safe(key)),
        };
        let mut group = Group::with_title(Level::ERROR.primary_title(title));
        if let Some(span) = problem.span.clone().and_then(|span| self.on_characters(span)) {
            let label = AnnotationKind::Primary.span(span);
            group = group.element(Snippet::source(&*self.text).path(&*self.file).annotation(label));
        }
        if let Some(remedy) = &problem.remedy {
            group = group.element(Level::HELP.message(display_safe(remedy)));
        }
        renderer.render(&[group])
    }

    /// The span within the text and on character boundaries, as the renderer demands; an
    /// empty one when the place is lost.
    fn on_characters(&self, span: Range<usize>) -> Option<Range<usize>> {
        let (text, length) = (&*self.text, self.text.len());
        let start = (0..=span.start.min(length)).rfind(|&at| text.is_char_boundary(at))?;
        let end = (span.end.clamp(start, length)..=length).find(|&at| text.is_char_boundary(at))?;
        // A long span (a whole table) is drawn by its first line alone.
        let first_line = text.get(start..end)?.find('\n').map_or(end, |newline| start + newline);
        Some(start..first_line)
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for Problems {}

/// Words in the keys of what may be a secret, misspelt ones included.
const SECRET_KEYS: [&str; 4] = ["tok", "pass", "pw", "secret"];

/// The text, as long as it was, with stars for what stands where a secret may have been written, and
/// for names and passwords in addresses.
fn mask(text: &str) -> String {
    let stars = |secret: &str| -> String {
        let keep = |c: char| c.is_whitespace() || "\"'[]{},#".contains(c);
        secret.chars().map(|c| if keep(c) { c.to_string() } else { "*".repeat(c.len_utf8()) }).collect()
    };
    let mut masked = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        match line.split_once('=') {
            // A table says where the secret is, not what it is.
            Some((key, value))
                if SECRET_KEYS.iter().any(|word| key.to_ascii_lowercase().contains(word))
                    && !value.trim_start().starts_with('{') =>
            {
                masked.extend([key, "=", &stars(value)]);
            }
            _ => {
                let mut rest = line;
                while let Some((before, after)) = rest.split_once("://") {
                    let host =
                        after.find(|c: char| c.is_whitespace() || "/\"'`".contains(c)).unwrap_or(after.len());
                    let user = after[..host].rfind('@').unwrap_or(0);
                    masked.extend([before, "://", &stars(&after[..user])]);
                    rest = &after[user..];
                }
                masked.push_str(rest);
            }
        }
    }
    masked
}

/// Control characters that a file may carry must not reach the terminal.
fn display_safe(text: &str) -> String {
    mask(text).chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// "did you mean `x`?" for a word that is close to one of `known`, else what there is.
pub fn suggest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let known: Vec<&str> = known.into_iter().collect();
    let all = || (!known.is_empty()).then(|| format!("known here: {}", known.join(", ")));
    closest(word, known.iter().copied()).or_else(all)
}

/// "did you mean `x`?" for a word that is close to one of `known`.
pub fn closest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let (slips, candidate) =
        known.into_iter().map(|candidate| (distance(word, candidate), candidate)).min()?;
    // A third of the word may be wrong before the guess is worth less than the list.
    (slips <= 1 + candidate.chars().count() / 3).then(|| format!("did you mean `{candidate}`?"))
}

/// Slips between two words: insertions, deletions, substitutions and swaps of neighbours. `-` and `_` count as
/// equal, case does not count.
fn distance(left: &str, right: &str) -> usize {
    let fold = |word: &str| word.chars().take(64).collect::<String>().to_ascii_lowercase().replace('-', "_");
    strsim::osa_distance(&fold(left), &fold(right))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_near_miss_is_named_and_a_far_one_gets_the_list() {
        assert_eq!(
            suggest("job_submit", ["job-submit", "job-list"]),
            Some("did you mean `job-submit`?".into())
        );
        assert_eq!(suggest("intial", ["initial", "min"]), Some("did you mean `initial`?".into()));
        assert_eq!(suggest("zebra", ["initial", "min"]), Some("known here: initial, min".into()));
        assert_eq!(suggest("zebra", []), None);
    }

    #[test]
    fn a_problem_is_drawn_with_its_line_caret_and_remedy() {
        let text = "mode = \"enforce\"\nmood = 1\n";
        let problem = Problem {
            span: Some(17..21),
            key: "mood".into(),
            message: "unknown key".into(),
            remedy: Some("did you mean `mode`?".into()),
        };
        let problems = Problems::new("rayguard.toml", text, vec![problem]);
        assert_eq!(problems.position(&problems.list()[0]), Some((2, 1)));
        let drawn = problems.to_string();
        for part in ["rayguard.toml:2:1", "mood = 1", "^^^^", "did you mean `mode`?", "1 problem in"] {
            assert!(drawn.contains(part), "`{part}` is missing from:\n{drawn}");
        }
    }

    #[test]
    fn a_secret_that_stands_in_the_file_is_drawn_as_stars() {
        let text = "admin.token = 'hunter2'\nreplicas.url = 'redis://joe:hünter2@a:1/0'\nadmin.tokn = [\"hunter2\"]\n\
                    a.token = { file = '/run/token' }\nreplicas.passwort = hunter2\nb = 'http://a/x@y'\n";
        assert_eq!(mask(text).len(), text.len(), "places stay where they were");
        for line in 0..6 {
            let start = text.split_inclusive('\n').take(line).map(str::len).sum::<usize>();
            let problem = Problem {
                span: Some(start..start + 3),
                key: String::new(),
                message: "redis://joe:hunter2@a is no address".into(),
                remedy: None,
            };
            let drawn = Problems::new("f", text, vec![problem]).to_string();
            assert!(!drawn.contains("nter2"), "{drawn}");
            assert!(drawn.contains("@a is no address"), "{drawn}");
        }
        assert!(mask(text).contains("/run/token") && mask(text).contains("http://a/x@y"), "{}", mask(text));
    }

    #[test]
    fn a_place_inside_a_character_or_beyond_the_end_is_still_drawn() {
        for (start, end) in [(1, 2), (0, 99), (50, 60), (2, 1)] {
            let span = Range { start, end };
            let problem =
                Problem { span: Some(span), key: String::new(), message: "wrong".into(), remedy: None };
            let drawn = Problems::new("f", "ä = \"\u{1b}\"", vec![problem]).to_string();
            assert!(drawn.contains("wrong"));
        }
    }
}
