//! What does one line of exposition text say?
//!
//! The grammar of the Prometheus text format 0.0.4, read strictly: a name, labels in braces
//! with escaped values, a number, and perhaps a time stamp. OpenMetrics' exemplars are passed
//! over. What does not fit the grammar is no sample: the caller counts it as lost.

/// The lines of a page, without their ends.
pub(super) struct Lines<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Lines<'a> {
    type Item = &'a [u8];
    fn next(&mut self) -> Option<&'a [u8]> {
        if self.0.is_empty() {
            return None;
        }
        let end = memchr::memchr(b'\n', self.0).unwrap_or(self.0.len());
        let line = &self.0[..end];
        self.0 = self.0.get(end + 1..).unwrap_or(&[]);
        Some(line.strip_suffix(b"\r").unwrap_or(line))
    }
}

/// The metric name a line begins with; none for comments, blanks and anything else.
pub(super) fn name_of(line: &[u8]) -> Option<&[u8]> {
    let first = *line.first()?;
    if !(first.is_ascii_alphabetic() || first == b'_' || first == b':') {
        return None;
    }
    let is_named = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b':');
    let len = line.iter().position(|byte| !is_named(byte)).unwrap_or(line.len());
    matches!(line.get(len), None | Some(b'{' | b' ' | b'\t')).then(|| &line[..len])
}

/// Whether a line is a sample whose name stands in quotes (`{"my.name",a="b"} 1`), as Prometheus 3
/// writes names of other letters.
pub(super) fn is_quoted_sample(line: &[u8]) -> bool {
    let inside = line.strip_prefix(b"{").map(skip_blanks).and_then(lex_quoted);
    let Some((_, after)) = inside else { return false };
    let labels = skip_blanks(after);
    let labels = labels.strip_prefix(b",").unwrap_or(labels);
    let tail = lex(&[b"{", labels].concat(), &mut Vec::new()).and_then(|tail| as_number(tail.value));
    tail.is_some()
}

/// What follows the labels.
pub(super) struct Tail<'a> {
    pub(super) value: &'a [u8],
    pub(super) stamp: Option<&'a [u8]>,
}

/// Reads what follows the name: its labels into `labels`, the rest as the result. None when
/// the line is no sample.
pub(super) fn lex<'a>(after_name: &'a [u8], labels: &mut Vec<Label<'a>>) -> Option<Tail<'a>> {
    labels.clear();
    let mut rest = skip_blanks(after_name);
    if let Some(inside) = rest.strip_prefix(b"{") {
        rest = skip_blanks(inside);
        while !rest.starts_with(b"}") {
            let (label, after) = lex_label(rest)?;
            labels.push(label);
            rest = skip_blanks(after);
            match rest.first()? {
                b',' => rest = skip_blanks(&rest[1..]),
                b'}' => {}
                _ => return None,
            }
        }
        rest = skip_blanks(&rest[1..]);
    }
    let (value, after) = word(rest);
    let (stamp, after) = word(after);
    if value.is_empty() {
        return None;
    }
    // An exemplar may follow, which is not read.
    let (stamp, end) = if stamp.first() == Some(&b'#') { (&stamp[..0], &stamp[..0]) } else { (stamp, after) };
    let stamp = (!stamp.is_empty()).then_some(stamp);
    (end.is_empty() || end.starts_with(b"#")).then_some(Tail { value, stamp })
}

/// Name, raw value (escapes as written).
pub(super) type Label<'a> = (&'a [u8], &'a [u8]);

fn lex_label(rest: &[u8]) -> Option<(Label<'_>, &[u8])> {
    let (name, rest) = if rest.starts_with(b"\"") { lex_quoted(rest)? } else { lex_label_name(rest)? };
    let rest = skip_blanks(rest).strip_prefix(b"=")?;
    let (value, rest) = lex_quoted(skip_blanks(rest))?;
    Some(((name, value), rest))
}

fn lex_label_name(rest: &[u8]) -> Option<(&[u8], &[u8])> {
    let len = rest.iter().position(|byte| !(byte.is_ascii_alphanumeric() || *byte == b'_'))?;
    let (name, rest) = rest.split_at(len);
    if name.first().is_none_or(u8::is_ascii_digit) {
        return None;
    }
    Some((name, rest))
}

/// What stands in quotes, escapes as written, and what follows it.
fn lex_quoted(rest: &[u8]) -> Option<(&[u8], &[u8])> {
    let rest = rest.strip_prefix(b"\"")?;
    let mut end = 0;
    loop {
        end += memchr::memchr2(b'"', b'\\', rest.get(end..)?)?;
        if rest[end] == b'"' {
            return Some((&rest[..end], &rest[end + 1..]));
        }
        end += 2;
    }
}

fn skip_blanks(rest: &[u8]) -> &[u8] {
    let len = rest.iter().position(|byte| !matches!(byte, b' ' | b'\t')).unwrap_or(rest.len());
    &rest[len..]
}

/// The next word and what follows it, without blanks between.
fn word(rest: &[u8]) -> (&[u8], &[u8]) {
    let len = rest.iter().position(|byte| matches!(byte, b' ' | b'\t')).unwrap_or(rest.len());
    (&rest[..len], skip_blanks(&rest[len..]))
}

/// `\\`, `\"` and `\n` as what they mean; an unknown escape stays as it is.
pub(super) fn unescape(raw: &str) -> String {
    let mut text = String::with_capacity(raw.len());
    let mut letters = raw.chars();
    while let Some(letter) = letters.next() {
        match (letter, letters.as_str().chars().next()) {
            ('\\', Some(after @ ('\\' | '"' | 'n'))) => {
                text.push(if after == 'n' { '\n' } else { after });
                letters.next();
            }
            _ => text.push(letter),
        }
    }
    text
}

/// Milliseconds since the Unix epoch: as written, or from OpenMetrics' seconds.
pub(super) fn time_stamp(word: &[u8], in_seconds: bool) -> Option<i64> {
    let word = std::str::from_utf8(word).ok()?;
    if !in_seconds {
        return word.parse().ok();
    }
    let seconds: f64 = word.parse().ok()?;
    let ms = (seconds * 1000.0).round();
    #[expect(clippy::cast_possible_truncation, reason = "bounded: 2^53 ms are 285,000 years")]
    (ms.abs() <= 9.0e15).then_some(ms as i64)
}

/// As [`number`].
pub(super) fn as_number(word: &[u8]) -> Option<f64> {
    std::str::from_utf8(word).ok().and_then(number)
}

/// A number as exporters write it: `NaN`, `+Inf`, `1e5`.
pub(super) fn number(word: &str) -> Option<f64> {
    word.parse().ok()
}
