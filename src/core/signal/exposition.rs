//! What of an exporter's answer is needed, and is it whole?
//!
//! Ray's pages grow with every job (one job burst took the agent's page from 254 to 553 kB), and
//! `prometheus-parse` reads about 14 MB/s, never reports an error, and loses lines with `}`, `,` or
//! `=` in a label's value. So the page is first cut down by bytes, and labels are read here:
//!
//! 1. **Shape.** Empty, HTML, JSON, binary or cut off in the middle of a line: refused whole,
//!    as a typed [`Malformed`]. A number cut short is still a number (`123` becomes `12`), so
//!    a page without its last line feed is not trusted at all.
//! 2. **Lines.** `memchr` finds line ends; a line stays when its name is on the allow-list and
//!    it holds the quoted label values that some selector asks for. The values are searched
//!    without their label's name, so that unusual blanks (`{a = "b"}`) cannot hide a line; what
//!    stays too much is dropped by the exact match afterwards.
//! 3. **Labels.** Each line that stays is read strictly, by the text format's grammar, into a
//!    digest of all labels (which series it is) and the few labels that selectors name.
//! 4. **Values.** The distinct values go to `prometheus-parse` in one page, each under a key that
//!    stands in for it; a value that does not come back is a lost line and is counted.
//! 5. **Bounds.** A family with more lines than `FAMILY_LINES_MAX` is given up, and no other one
//!    with it: a sum over a part of its lines would be wrong in silence.
//!
//! Nothing is lost in silence: [`Counts`] says how many lines stayed, how many became samples,
//! and how many were lost and why not.
//!
//! **Who is alive.** To tell a gauge that is honestly constant from one that no process feeds any
//! more, something else from the same feeder must be seen to move. A digest of the raw page
//! will not do: `process_cpu_seconds_total` and its like move because the page is asked for,
//! though all that feeds the page may hang. So the other lines are digested by who feeds them
//! ([`Reporter`]): the agent's own sampling loop, the GCS, and all others. The digest is a
//! sum over lines, so that their order does not matter.
//!
//! **Whose page.** Ray before 2.4x says `IsHeadNode` nowhere, and a worker's page has a node's readings too. But
//! the GCS pushes to the head's agent alone, and dashboard and GCS run on the head alone: a page with a line of
//! theirs is the head's ([`Whose::Heads`]). There a line without the label is read as if it said
//! `IsHeadNode="true"`. Which target that was is remembered by who reads its next page.
//!
//! Source: Prometheus text format 0.0.4 and OpenMetrics 1.0 (`# EOF`, exemplars and time
//! stamps in seconds are understood). Lines with their name in quotes (`{"my.name"}`) are passed
//! over: Ray writes none.

use crate::policy::{Derivation, How, LabelCondition, Selector};
use crate::signal::line::{Label, Lines, as_number, is_quoted_sample, lex, name_of, time_stamp, unescape};
use memchr::memmem::Finder;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A family with more lines of interest than this is given up: memory stays bounded.
pub(crate) const FAMILY_LINES_MAX: usize = 65_536;

/// A page whose first lines are none of them samples is no exposition.
const SHAPE_LINES: usize = 64;

/// Why an answer is not an exposition.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Malformed {
    /// Nothing, or nothing but blanks.
    #[error("the answer is empty; is the exporter still starting?")]
    Empty,
    /// A web page: a login form, an error page, or the dashboard's own port.
    #[error("the answer is a web page, not metrics; check the target's port and path")]
    Html,
    /// Text or bytes of another kind.
    #[error("the answer is not exposition text, it begins with `{begin}`; check the target's port and path")]
    NotExposition {
        /// The first characters, made printable.
        begin: String,
    },
    /// The last line has no end.
    #[error("the answer of {bytes} bytes ends in the middle of a line; nothing in it is used")]
    Truncated {
        /// The length received.
        bytes: usize,
    },
}

/// Who feeds a line, as far as its name and labels tell. See the essay.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reporter {
    /// The sampling loop of the agent or the dashboard: node and process readings, each 5 s.
    Node,
    /// The GCS, which pushes its metrics to the agent each 10 s.
    Gcs,
    /// Raylet, workers, and every exporter that is not Ray's.
    Other,
}

impl Reporter {
    /// Who feeds what a selector asks for.
    #[must_use]
    pub fn of(select: &Selector) -> Reporter {
        let is_gcs = |condition: &LabelCondition| match condition {
            LabelCondition::Is(label, value) => {
                matches!((&**label, &**value), ("Component", "gcs_server") | ("Source", "gcs"))
            }
            _ => false,
        };
        if select.metric.starts_with("ray_gcs_") || select.labels.iter().any(is_gcs) {
            Reporter::Gcs
        } else {
            reporter(select.metric.as_bytes(), select.metric.as_bytes()).unwrap_or(Reporter::Other)
        }
    }
}

/// Whose page it is, as far as it says so itself. See the essay.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Whose {
    /// It does not say.
    #[default]
    Unsaid,
    /// The head's.
    Heads,
    /// Another node's.
    Nodes,
}

/// One sample of interest.
#[derive(Clone, PartialEq, Debug)]
pub struct Sample {
    /// Index of the family, see [`Filter::family`].
    pub family: usize,
    /// Digest of the name and all labels but `le`: equal for all buckets of one series.
    pub series: u64,
    /// The labels that selectors name; a label that is absent is not here. Shared between
    /// equal ones.
    pub labels: Arc<[(Arc<str>, Box<str>)]>,
    /// The bucket's upper bound, when the line has one.
    pub le: Option<f64>,
    /// As read: may be NaN, infinite or negative.
    pub value: f64,
    /// The line's own time stamp, milliseconds since the Unix epoch.
    pub stamp_ms: Option<i64>,
    /// Who feeds it.
    pub reporter: Reporter,
}

impl Sample {
    /// The value of a label; absent is empty, as Prometheus has it.
    #[must_use]
    pub fn label(&self, name: &str) -> &str {
        self.labels.iter().find(|(label, _)| &**label == name).map_or("", |(_, value)| value)
    }

    /// Whether every condition holds on a page that is the head's, or is not.
    #[must_use]
    pub(crate) fn satisfies(&self, conditions: &[LabelCondition], on_heads_page: bool) -> bool {
        conditions.iter().all(|condition| match condition {
            LabelCondition::Is(name, value) => match self.label(name) {
                "" if on_heads_page && is_of_head_node(name) => &**value == "true",
                said => said == &**value,
            },
            LabelCondition::IsNot(name, value) => self.label(name) != &**value,
            LabelCondition::StartsWith(name, start) => self.label(name).starts_with(&**start),
            LabelCondition::OneOf(name, values) => values.iter().any(|value| self.label(name) == &**value),
        })
    }
}

/// What was read and what was not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Bytes of the page.
    pub bytes: usize,
    /// Lines that may matter: allow-listed name, wanted label values.
    pub kept: usize,
    /// Kept lines that became samples.
    pub parsed: usize,
    /// Kept lines that break the grammar, are not UTF-8, or belong to a family that was given up.
    pub lost: usize,
    /// Kept lines that repeat a series; the first one counts.
    pub repeated: usize,
}

/// A page, reduced to what the signals need.
#[derive(Clone, PartialEq, Debug)]
pub struct Exposition {
    /// By family, within it in the order of the page.
    samples: Vec<Sample>,
    /// Completeness.
    pub counts: Counts,
    /// Lines seen per family and [`Reporter`], before label values were looked at.
    family_lines: Vec<[usize; 3]>,
    /// Lines lost per family.
    pub family_lost: Vec<usize>,
    /// Families that were given up for having too many lines.
    overfull: BTreeSet<usize>,
    /// A digest of what each reporter said, by [`Reporter`].
    reported: [u64; 3],
    whose: Whose,
}

impl Exposition {
    /// Whose page it is, as far as it says so itself.
    #[must_use]
    pub fn whose(&self) -> Whose {
        self.whose
    }

    /// The samples of all families, by family, within one in the order of the page.
    #[must_use]
    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }

    /// The samples of one family.
    #[must_use]
    pub fn family(&self, family: usize) -> &[Sample] {
        let begin = self.samples.partition_point(|sample| sample.family < family);
        let len = self.samples[begin..].partition_point(|sample| sample.family == family);
        &self.samples[begin..begin + len]
    }

    /// Lines of a family that this reporter feeds, whatever their labels: tells "the family is
    /// there, no series matches" from "no such family" and from "its reporter is silent".
    #[must_use]
    pub(crate) fn family_lines(&self, family: usize, reporter: Reporter) -> usize {
        self.family_lines[family][reporter as usize]
    }

    /// Whether a family was given up: it has more than [`FAMILY_LINES_MAX`] lines.
    #[must_use]
    pub(crate) fn is_overfull(&self, family: usize) -> bool {
        self.overfull.contains(&family)
    }

    /// A digest of everything this reporter said; equal digests: it said nothing new.
    #[must_use]
    pub fn reported(&self, reporter: Reporter) -> u64 {
        self.reported[reporter as usize]
    }
}

/// The allow-list: which lines may matter to any signal.
#[derive(Clone, Debug)]
pub struct Filter {
    /// Sorted by name.
    families: Vec<Family>,
    /// What lines of the head alone hold, and what only another node's do.
    of_head: Vec<Finder<'static>>,
    of_node: Finder<'static>,
}

#[derive(Clone, Debug)]
struct Family {
    /// As at the head of a line; `_bucket` included for histograms.
    name: Arc<str>,
    /// One per selector; a line stays when any of them may match.
    wanted: Vec<Wanted>,
    /// Labels that selectors name.
    labels: Vec<Arc<str>>,
}

/// The quoted values a line must hold for one selector: of each group at least one.
#[derive(Clone, Debug)]
struct Wanted(Vec<Vec<Finder<'static>>>);

impl Filter {
    /// The lines that these derivations read.
    #[must_use]
    pub fn new<'a>(derivations: impl IntoIterator<Item = &'a Derivation>) -> Filter {
        let needle = |text: &str| Finder::new(text.as_bytes()).into_owned();
        let mut filter = Filter {
            families: Vec::new(),
            of_head: OF_HEAD.iter().map(|text| needle(text)).collect(),
            of_node: needle("IsHeadNode=\"false\""),
        };
        for derivation in derivations {
            filter.add(&derivation.select, line_name(&derivation.select, &derivation.how));
            if let How::RatioTo(other) = &derivation.how {
                filter.add(other, other.metric.to_string());
            }
        }
        filter.families.sort_by(|a, b| a.name.cmp(&b.name));
        filter
    }

    /// Whose a line is.
    fn whose(&self, reporter: Reporter, labels: &[u8]) -> Whose {
        match reporter {
            Reporter::Gcs => Whose::Heads,
            Reporter::Node if self.of_head.iter().any(|needle| needle.find(labels).is_some()) => Whose::Heads,
            Reporter::Node if self.of_node.find(labels).is_some() => Whose::Nodes,
            Reporter::Node | Reporter::Other => Whose::Unsaid,
        }
    }

    fn add(&mut self, selector: &Selector, name: String) {
        let known = self.families.iter().position(|family| *family.name == *name);
        let place = known.unwrap_or_else(|| {
            self.families.push(Family { name: name.into(), wanted: Vec::new(), labels: Vec::new() });
            self.families.len() - 1
        });
        let family = &mut self.families[place];
        family.wanted.push(Wanted(selector.labels.iter().filter_map(needles).collect()));
        for condition in &selector.labels {
            let (LabelCondition::Is(label, _)
            | LabelCondition::IsNot(label, _)
            | LabelCondition::StartsWith(label, _)
            | LabelCondition::OneOf(label, _)) = condition;
            if !family.labels.contains(label) {
                family.labels.push(label.clone());
            }
        }
    }

    /// The index of a family by the name at the head of its lines.
    #[must_use]
    pub fn family(&self, name: &str) -> Option<usize> {
        self.families.binary_search_by(|family| (*family.name).cmp(name)).ok()
    }

    /// Reads a page.
    ///
    /// # Errors
    /// [`Malformed`] when the page as a whole cannot be trusted.
    pub fn read(&self, page: &[u8]) -> Result<Exposition, Malformed> {
        check_shape(page)?;
        let stamps_in_seconds = ends_with_eof_mark(page);
        let mut reading = Exposition {
            samples: Vec::new(),
            counts: Counts { bytes: page.len(), ..Counts::default() },
            family_lines: vec![[0; 3]; self.families.len()],
            family_lost: vec![0; self.families.len()],
            overfull: BTreeSet::new(),
            reported: [0; 3],
            whose: Whose::Unsaid,
        };
        let mut kept = vec![0; self.families.len()];
        let mut batch = Batch::default();
        for line in Lines(page) {
            let Some(name) = name_of(line) else { continue };
            let reporter = reporter(name, line);
            if let Some(reporter) = reporter {
                let said = &mut reading.reported[reporter as usize];
                *said = said.wrapping_add(digest(line));
                if reading.whose == Whose::Unsaid {
                    reading.whose = self.whose(reporter, &line[name.len()..]);
                }
            }
            let Ok(place) = self.families.binary_search_by(|family| family.name.as_bytes().cmp(name)) else {
                continue;
            };
            reading.family_lines[place][reporter.unwrap_or(Reporter::Other) as usize] += 1;
            let family = &self.families[place];
            if !family.wanted.iter().any(|wanted| wanted.may_match(line)) {
                continue;
            }
            reading.counts.kept += 1;
            kept[place] += 1;
            if kept[place] > FAMILY_LINES_MAX {
                reading.overfull.insert(place);
                continue;
            }
            if !batch.take(place, family, line, name.len(), stamps_in_seconds) {
                reading.family_lost[place] += 1;
            }
        }
        batch.finish(&mut reading);
        for &place in &reading.overfull {
            reading.samples.retain(|sample| sample.family != place);
            reading.family_lost[place] = kept[place];
        }
        reading.counts.repeated = drop_repeated(&mut reading.samples);
        // Stable: within a family the page's own order stays.
        reading.samples.sort_by_key(|sample| sample.family);
        reading.counts.parsed = reading.samples.len();
        reading.counts.lost = reading.family_lost.iter().sum();
        Ok(reading)
    }
}

impl Wanted {
    fn may_match(&self, line: &[u8]) -> bool {
        self.0.iter().all(|group| group.iter().any(|needle| needle.find(line).is_some()))
    }
}

/// The name at the head of the lines that a derivation reads.
#[must_use]
pub(crate) fn line_name(selector: &Selector, how: &How) -> String {
    match how {
        How::ShareAbove(_) | How::Quantile(_) => format!("{}_bucket", selector.metric),
        How::Sum | How::Max | How::Rate | How::RatioTo(_) => selector.metric.to_string(),
    }
}

/// What a line must hold for a condition to have a chance; `None` when absence may satisfy it.
fn needles(condition: &LabelCondition) -> Option<Vec<Finder<'static>>> {
    let quoted = |value: &str, end: &str| {
        let escaped = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        Finder::new(format!("\"{escaped}{end}").as_bytes()).into_owned()
    };
    match condition {
        LabelCondition::Is(name, _) if is_of_head_node(name) => None,
        LabelCondition::Is(_, value) if !value.is_empty() => Some(vec![quoted(value, "\"")]),
        LabelCondition::StartsWith(_, start) if !start.is_empty() => Some(vec![quoted(start, "")]),
        LabelCondition::OneOf(_, values) if values.iter().all(|value| !value.is_empty()) => {
            Some(values.iter().map(|value| quoted(value, "\"")).collect())
        }
        _ => None,
    }
}

// Shape.

fn check_shape(page: &[u8]) -> Result<(), Malformed> {
    let text = page.trim_ascii_start();
    let text = text.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(text);
    let Some(&first) = text.first() else { return Err(Malformed::Empty) };
    if first == b'<' {
        return Err(Malformed::Html);
    }
    let is_content = |line: &&[u8]| line.trim_ascii_start().first().is_some_and(|&first| first != b'#');
    // One line may be broken without the page being of another kind.
    let mut content = Lines(text).filter(is_content).take(SHAPE_LINES).peekable();
    if content.peek().is_some() && !content.any(|line| is_sample(line) || is_cut(page, line)) {
        return Err(Malformed::NotExposition { begin: printable(text) });
    }
    if page.last() != Some(&b'\n') && !ends_with_eof_mark(page) {
        return Err(Malformed::Truncated { bytes: page.len() });
    }
    Ok(())
}

fn is_sample(line: &[u8]) -> bool {
    let tail = name_of(line).and_then(|name| lex(&line[name.len()..], &mut Vec::new()));
    tail.is_some_and(|tail| as_number(tail.value).is_some()) || is_quoted_sample(line)
}

/// Whether the line is the last one and has no end, so that its grammar proves nothing.
fn is_cut(page: &[u8], line: &[u8]) -> bool {
    page.ends_with(line) && name_of(line).is_some()
}

fn ends_with_eof_mark(page: &[u8]) -> bool {
    let page = page.trim_ascii_end();
    page.ends_with(b"# EOF") && (page.len() == 5 || page[page.len() - 6] == b'\n')
}

fn printable(text: &[u8]) -> String {
    text.iter().take(24).flat_map(|byte| byte.escape_ascii()).map(char::from).collect()
}

// Who.

/// Labels that readings of node and processes have on the head's page alone.
const OF_HEAD: &[&str] =
    &["IsHeadNode=\"true\"", "Component=\"gcs\"", "Component=\"dashboard\"", "Component=\"dashboard_"];

/// Whether this is the label that a page of the head stands for.
fn is_of_head_node(label: &str) -> bool {
    label == "IsHeadNode"
}

fn reporter(name: &[u8], line: &[u8]) -> Option<Reporter> {
    let is_any = |starts: &[&[u8]]| starts.iter().any(|start| name.starts_with(start));
    if is_any(&[b"process_", b"python_", b"target_info", b"scrape_"]) || name.ends_with(b"_created") {
        None
    } else if is_any(&[b"ray_node_", b"ray_component_", b"ray_cluster_", b"ray_dashboard_event_loop_"]) {
        Some(Reporter::Node)
    } else if line[name.len()..].starts_with(b"{Component=\"gcs_server\"") {
        Some(Reporter::Gcs)
    } else {
        Some(Reporter::Other)
    }
}

/// Not cryptographic: it need only tell two pages of the same exporter apart.
fn digest(bytes: &[u8]) -> u64 {
    digest_after(0x9E37_79B9_7F4A_7C15, bytes)
}

/// The digest of `bytes` behind what `before` is the digest of.
fn digest_after(before: u64, bytes: &[u8]) -> u64 {
    const ODD: u64 = 0x9E37_79B9_7F4A_7C15;
    let mut hash = before ^ bytes.len() as u64;
    let mut words = bytes.chunks_exact(8);
    for word in &mut words {
        let mut eight = [0; 8];
        eight.copy_from_slice(word);
        hash = (hash.rotate_left(23) ^ u64::from_le_bytes(eight)).wrapping_mul(ODD);
    }
    let mut rest = [0; 8];
    rest[..words.remainder().len()].copy_from_slice(words.remainder());
    hash = (hash.rotate_left(23) ^ u64::from_le_bytes(rest)).wrapping_mul(ODD);
    hash ^ (hash >> 29)
}

// Labels and values.

/// The samples of a page, on their way.
///
/// Reduced to the labels that matter, the lines of a thousand jobs are a few dozen different ones,
/// and most of their values are zero: each set of labels is kept once, each value parsed once.
#[derive(Default)]
struct Batch<'a> {
    /// Samples without their value, in the order of the page; and that value's key.
    waiting: Vec<(Sample, usize)>,
    /// The values as written; their places are their keys.
    values: Vec<&'a str>,
    value_keys: BTreeMap<&'a str, usize>,
    /// The labels that matter, by the digest of their text.
    reduced: BTreeMap<u64, Reduced>,
    /// The line being read.
    labels: Vec<Label<'a>>,
    text: String,
}

/// What lines that reduce to the same share.
struct Reduced {
    text: String,
    labels: Arc<[(Arc<str>, Box<str>)]>,
}

impl<'a> Batch<'a> {
    /// Reads a line; false when it is lost.
    fn take(
        &mut self,
        place: usize,
        family: &Family,
        line: &'a [u8],
        name_len: usize,
        stamps_in_seconds: bool,
    ) -> bool {
        let Some(tail) = lex(&line[name_len..], &mut self.labels) else { return false };
        let Ok(value) = std::str::from_utf8(tail.value) else { return false };
        let stamp_ms = tail.stamp.map(|stamp| time_stamp(stamp, stamps_in_seconds));
        if stamp_ms == Some(None) {
            return false;
        }
        let mut series = digest(&line[..name_len]);
        let mut le = None;
        self.text.clear();
        for &(label, raw) in &self.labels {
            if label == b"le" {
                le = as_number(raw);
                if le.is_none() {
                    return false;
                }
                continue;
            }
            // A sum, so that the order of labels does not matter.
            series = series.wrapping_add(digest_after(digest(label), raw));
            if let Some(known) = family.label(label) {
                let Ok(raw) = std::str::from_utf8(raw) else { return false };
                // Values are still escaped: a quote ends one.
                self.text.extend([known, "=\"", raw, "\""]);
            }
        }
        let reporter = reporter(&line[..name_len], line).unwrap_or(Reporter::Other);
        let (labels, stamp_ms) = (self.labels_of(family), stamp_ms.flatten());
        let sample = Sample { family: place, series, labels, le, value: f64::NAN, stamp_ms, reporter };
        let next = self.values.len();
        let key = *self.value_keys.entry(value).or_insert(next);
        if key == next {
            self.values.push(value);
        }
        self.waiting.push((sample, key));
        true
    }

    /// Reads the values and hands over the samples.
    fn finish(self, into: &mut Exposition) {
        let values = parse(&self.values);
        for (mut sample, key) in self.waiting {
            match values[key] {
                None => into.family_lost[sample.family] += 1,
                Some(value) => {
                    sample.value = value;
                    into.samples.push(sample);
                }
            }
        }
    }

    /// The labels that matter of the line being read, shared with the lines before it.
    fn labels_of(&mut self, family: &Family) -> Arc<[(Arc<str>, Box<str>)]> {
        let anew = || Reduced { text: self.text.clone(), labels: family.known(&self.labels) };
        let known = self.reduced.entry(digest(self.text.as_bytes())).or_insert_with(anew);
        // Another one may have the same digest, once in an age of the world.
        if known.text == self.text { Arc::clone(&known.labels) } else { family.known(&self.labels) }
    }
}

impl Family {
    /// The label as selectors name it, if one does.
    fn label(&self, name: &[u8]) -> Option<&Arc<str>> {
        self.labels.iter().find(|known| known.as_bytes() == name)
    }

    /// The labels that selectors name, with what they mean.
    fn known(&self, labels: &[Label<'_>]) -> Arc<[(Arc<str>, Box<str>)]> {
        let value = |raw: &[u8]| unescape(&String::from_utf8_lossy(raw)).into();
        labels.iter().filter_map(|(name, raw)| Some((Arc::clone(self.label(name)?), value(raw)))).collect()
    }
}

/// Drops samples that repeat a series; the first one stays. Returns how many went.
fn drop_repeated(samples: &mut Vec<Sample>) -> usize {
    // The series digests the name as well, so that families need not be told apart.
    let identity =
        |sample: &Sample| digest_after(sample.series, &sample.le.map_or(0, f64::to_bits).to_le_bytes());
    let mut order: Vec<(u64, usize)> = samples.iter().map(identity).zip(0..).collect();
    order.sort_unstable();
    let repeats = order.windows(2).filter(|pair| pair[0].0 == pair[1].0).map(|pair| pair[1].1);
    let repeats: BTreeSet<usize> = repeats.collect();
    if !repeats.is_empty() {
        let mut place = 0..;
        samples.retain(|_| place.next().is_none_or(|place| !repeats.contains(&place)));
    }
    repeats.len()
}

/// What each of these words is as a number, if it is one.
#[expect(clippy::default_trait_access, reason = "the type is chrono's, which is no dependency of ours")]
fn parse(words: &[&str]) -> Vec<Option<f64>> {
    let lines = words.iter().zip(0..).map(|(word, key)| Ok(format!("k{key} {word}")));
    // The parser's own time is not used: each line's stamp was read before. It returns no error here,
    // since no line does.
    let page = prometheus_parse::Scrape::parse_at(lines, Default::default());
    let mut values = vec![None; words.len()];
    for sample in page.map(|page| page.samples).unwrap_or_default() {
        let key = sample.metric.strip_prefix('k').and_then(|key| key.parse::<usize>().ok());
        if let (Some(value), prometheus_parse::Value::Untyped(read)) =
            (key.and_then(|key| values.get_mut(key)), sample.value)
        {
            *value = Some(read);
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn select(metric: &str, labels: Vec<LabelCondition>, how: How) -> Derivation {
        Derivation { select: Selector { metric: metric.into(), labels }, how, scale: 1.0 }
    }

    fn is(label: &str, value: &str) -> LabelCondition {
        LabelCondition::Is(label.into(), value.into())
    }

    fn filter(derivation: &Derivation) -> Filter {
        Filter::new([derivation])
    }

    fn values(exposition: &Exposition) -> Vec<f64> {
        exposition.samples.iter().map(|sample| sample.value).collect()
    }

    #[test]
    fn only_allow_listed_families_with_wanted_labels_stay() {
        let filter = filter(&select("up", vec![is("job", "ray")], How::Sum));
        let page = b"# TYPE up gauge\nup{job=\"ray\"} 1\nup{job=\"other\"} 2\nupper{job=\"ray\"} 3\n";
        let exposition = filter.read(page).unwrap();
        assert_eq!(values(&exposition), [1.0]);
        assert_eq!(exposition.family_lines(0, Reporter::Other), 2, "both lines of the family were seen");
        assert_eq!(exposition.counts.kept, 1);
    }

    #[test]
    fn blanks_escapes_and_braces_in_labels_do_not_lose_a_line() {
        let filter = filter(&select("m", vec![LabelCondition::IsNot("a".into(), "never".into())], How::Sum));
        let page = concat!(
            "m { a = \"x\" , b=\"y\" , } 1\n",
            "m{a=\"C:\\\\DIR\\n\\\"q\\\"\"} 2\n",
            "m{a=\"{}}\",b=\"}\"} 3\n",
            "m{a=\"k=v,w\"} 4\n",
            "m 5\n",
            "m{} 6\n",
            "m{b=\"only\"} 7 1395066363000\n",
        );
        let exposition = filter.read(page.as_bytes()).unwrap();
        // `m` and `m{}` are one series: the first one counts.
        assert_eq!(values(&exposition), [1.0, 2.0, 3.0, 4.0, 5.0, 7.0]);
        assert_eq!(exposition.counts.repeated, 1);
        assert_eq!(exposition.counts.lost, 0);
        let labels: Vec<&str> = exposition.samples.iter().map(|sample| sample.label("a")).collect();
        assert_eq!(labels, ["x", "C:\\DIR\n\"q\"", "{}}", "k=v,w", "", ""]);
        assert_eq!(exposition.samples[5].stamp_ms, Some(1_395_066_363_000));
    }

    #[test]
    fn a_label_value_that_holds_what_is_asked_for_elsewhere_does_not_match() {
        let derivation = select("m", vec![is("State", "PENDING")], How::Sum);
        let page = b"m{Name=\"PENDING\",State=\"RUNNING\"} 9\nm{Name=\"x\",State=\"PENDING\"} 2\n";
        let exposition = filter(&derivation).read(page).unwrap();
        let matching: Vec<f64> = exposition
            .samples
            .iter()
            .filter(|sample| sample.satisfies(&derivation.select.labels, false))
            .map(|sample| sample.value)
            .collect();
        assert_eq!(matching, [2.0]);
    }

    #[test]
    fn a_kept_line_that_cannot_be_read_is_counted_as_lost() {
        let filter = filter(&select("m", vec![], How::Sum));
        let page = b"m 1\nm{a=\"b} 2\nm{a=\"c\"} twelve\nm{a=\"\xFF\"} 4\nm{a=\"d\"} 1 2 3\nm{x=\"y\"} 7\n";
        let exposition = filter.read(page).unwrap();
        assert_eq!(values(&exposition), [1.0, 4.0, 7.0], "a foreign label that is not UTF-8 does no harm");
        assert_eq!((exposition.counts.kept, exposition.counts.lost), (6, 3));
        assert_eq!(exposition.family_lost, [3]);
    }

    #[test]
    fn open_metrics_end_marks_exemplars_and_seconds_are_understood() {
        let filter = filter(&select("h", vec![], How::ShareAbove(1.0)));
        let page =
            b"h_bucket{le=\"1\"} 4 # {trace=\"x\"} 0.7 1.5\nh_bucket{le=\"+Inf\"} 5 1395066363.5\n# EOF";
        let exposition = filter.read(page).unwrap();
        assert_eq!(values(&exposition), [4.0, 5.0]);
        assert_eq!(exposition.samples[0].le, Some(1.0));
        assert_eq!(exposition.samples[1].le, Some(f64::INFINITY));
        assert_eq!(exposition.samples[1].stamp_ms, Some(1_395_066_363_500));
        assert_eq!(exposition.samples[0].series, exposition.samples[1].series);
    }

    #[test]
    fn what_is_not_an_exposition_is_refused_by_its_kind() {
        let filter = filter(&select("m", vec![], How::Sum));
        assert_eq!(filter.read(b" \n\n"), Err(Malformed::Empty));
        assert_eq!(filter.read(b"\n<!doctype html><html>"), Err(Malformed::Html));
        assert_eq!(filter.read(b"<HTML>\n"), Err(Malformed::Html));
        assert!(matches!(filter.read(b"{\"status\":\"error\"}\n"), Err(Malformed::NotExposition { .. })));
        assert!(matches!(filter.read(b"\x1f\x8b\x08\0\0\n"), Err(Malformed::NotExposition { .. })));
        assert!(matches!(filter.read(b"404 page not found\n"), Err(Malformed::NotExposition { .. })));
        assert!(matches!(filter.read(b"Not Found\n"), Err(Malformed::NotExposition { .. })));
        assert_eq!(filter.read(b"m 1\nm{a=\"b\"} 12"), Err(Malformed::Truncated { bytes: 15 }));
        assert_eq!(filter.read(b"m{a=\"b"), Err(Malformed::Truncated { bytes: 6 }));
        assert!(filter.read(b"# nothing to report\n").unwrap().samples.is_empty());
    }

    #[test]
    fn a_family_with_more_lines_than_the_bound_is_given_up_and_no_other() {
        use std::fmt::Write as _;
        let filter = Filter::new(&[select("m", vec![], How::Sum), select("up", vec![], How::Sum)]);
        let mut page = String::from("up 1\n");
        for series in 0..=FAMILY_LINES_MAX {
            writeln!(page, "m{{i=\"{series}\"}} 1").unwrap();
        }
        let exposition = filter.read(page.as_bytes()).unwrap();
        let (m, up) = (filter.family("m").unwrap(), filter.family("up").unwrap());
        assert_eq!((exposition.family(m).len(), exposition.family(up).len()), (0, 1));
        assert!(exposition.is_overfull(m) && !exposition.is_overfull(up));
        assert_eq!(exposition.counts.lost, FAMILY_LINES_MAX + 1);
    }

    #[test]
    fn a_foreign_or_broken_first_sample_costs_no_other_line() {
        let filter = filter(&select("m", vec![], How::Sum));
        for first in ["{\"my.name\"} 1", "{\"my.name\", a=\"b\"} 1 5", "broken{ 1", "9 lives"] {
            let exposition = filter.read(format!("# HELP x y\n{first}\nm 2\n").as_bytes()).unwrap();
            assert_eq!(values(&exposition), [2.0], "{first}");
        }
        let quoted = filter.read(b"{\"only.this\",\"a.b\"=\"c\"} 1\n").unwrap();
        assert!(quoted.samples.is_empty());
        let label = filter.read(b"m{\"my.label\"=\"x\",a=\"b\"} 3\n").unwrap();
        assert_eq!((values(&label), label.counts.lost), (vec![3.0], 0));
        assert!(filter.read(b"{\"status\":\"success\"}\n").is_err(), "JSON is no sample");
    }

    #[test]
    fn each_reporter_is_seen_to_speak_on_its_own() {
        let filter = filter(&select("m", vec![], How::Sum));
        let read = |page: &str| {
            let exposition = filter.read(page.as_bytes()).unwrap();
            [Reporter::Node, Reporter::Gcs, Reporter::Other].map(|reporter| exposition.reported(reporter))
        };
        let page = |own: u32, node: u32, gcs: u32| {
            format!(
                "process_cpu_seconds_total {own}\nray_node_network_sent{{ip=\"a\"}} {node}\n\
                 ray_grpc_server_req_new_total{{Component=\"gcs_server\",M=\"x\"}} {gcs}\nm 1\n"
            )
        };
        let before = read(&page(1, 1, 1));
        assert_eq!(read(&page(2, 1, 1)), before, "the exporter's own CPU time is no news of Ray");
        let [node, gcs, other] = read(&page(2, 2, 1));
        assert!(node != before[0] && gcs == before[1] && other == before[2]);
        let [node, gcs, other] = read(&page(2, 1, 2));
        assert!(node == before[0] && gcs != before[1] && other == before[2]);
        let swapped = read(
            "m 1\nprocess_cpu_seconds_total 1\nray_grpc_server_req_new_total{Component=\"gcs_server\",M=\"x\"} 1\nray_node_network_sent{ip=\"a\"} 1\n",
        );
        assert_eq!(swapped, before, "the order of lines does not matter");
    }

    proptest! {
        #[test]
        fn no_bytes_panic_or_upset_the_count(page in proptest::collection::vec(any::<u8>(), 0..600)) {
            let filter = filter(&select("m", vec![is("a", "b")], How::Quantile(0.9)));
            if let Ok(exposition) = filter.read(&page) {
                let counts = exposition.counts;
                prop_assert_eq!(counts.kept, counts.parsed + counts.lost + counts.repeated);
            }
        }

        #[test]
        fn no_near_exposition_panics_or_upsets_the_count(
            lines in proptest::collection::vec("m(_bucket)?( ?\\{ ?(a|le|) ?=? ?\"?[a-z\\\\\"}=,]{0,4}\"?,?\\})? [0-9NaInf+.-]{0,5}( [0-9-]{1,16})?", 0..12)
        ) {
            let filter = Filter::new(&[select("m", vec![], How::Sum), select("m", vec![is("a", "b")], How::Rate)]);
            let page = lines.join("\n") + "\n";
            if let Ok(exposition) = filter.read(page.as_bytes()) {
                let counts = exposition.counts;
                prop_assert_eq!(counts.kept, counts.parsed + counts.lost + counts.repeated);
                prop_assert_eq!(exposition.family_lost.iter().sum::<usize>(), counts.lost);
            }
        }

        #[test]
        fn any_label_value_written_by_the_format_is_read_back(value in "\\PC{0,12}", number in -1e9..1e9f64) {
            let filter = filter(&select("m", vec![LabelCondition::IsNot("a".into(), "\u{0}".into())], How::Sum));
            let escaped = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let exposition = filter.read(format!("m{{z=\"1\",a=\"{escaped}\"}} {number}\n").as_bytes()).unwrap();
            prop_assert_eq!(exposition.samples.len(), 1);
            prop_assert_eq!(exposition.samples[0].label("a"), &*value);
            prop_assert_eq!(exposition.samples[0].value.to_bits(), number.to_bits());
        }
    }
}
