//! The words of a trace: who asked for what and when, what became of it, and what the loop
//! read and did meanwhile, as lines that can be replayed.
//!
//! A trace exists to ask "and what if?" afterwards, so it holds the *offered* load (what
//! was refused too) and nothing that could name anybody. A client is a small number, given in
//! the order of appearance; a route is the number of a pattern of Ray's; there is no address,
//! no credential, no path, no query and no body in it, and no field that could hold one.
//!
//! It is text, one line a thing, so that an operator can look at what is about to be handed on:
//!
//! ```text
//! rayguard-trace 1 {...}            names behind the numbers; again after a reload
//! @ 12                                  the second that the next lines' times count from
//! r 500123 4 17 1 - s 0 5321 0 811      an exchange ended: us class route address credential
//!                                       ending waited_us latency_us asked_bytes answered_bytes
//! o 500200 9 21 2 1                     a held connection began: us class route address credential
//! l 500300 4 in_flight 12.5             a limit from now on: us class kind value
//! g 500400 2 87.5 5000000               a reading: us signal value age_us
//! ! 500500 31                           so many lines are missing
//! . 600000 stopped                      the end, and why
//! ```
//!
//! An ending is `s` served, `f` failed, `a` abandoned (its client left, its work went on), `l`
//! left before it was sent, `c` answered from another's answer, `x:REASON` refused; `s:REASON`
//! and the like were let through in shadow mode and would have been refused. Every line stands
//! by itself: one that is torn or spoilt costs itself alone, and is counted. Times are
//! the proxy's own monotone clock; an exchange's arrival is its end less latency and wait.

use super::admission::meter::{Outcome, Reason};
use super::event::LimitKind;
use super::time::{Time, WallMs};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

/// How the first line begins.
pub(crate) const MAGIC: &str = "rayguard-trace ";

/// Begins a file of before traffic traces were called that; nothing else in it differs.
const MAGIC_BEFORE: &str = "rayguard-recording "; // kept: written in files

/// The format's version. A reader refuses any other.
pub const VERSION: u32 = 1;

/// A longer line is none of ours; the first line holds a few hundred names.
const LINE_BYTES_MAX: usize = 1 << 20;

/// A second that lies further ahead than this of the last is a spoilt line, not a quiet day.
const LEAP_S: u64 = 86_400;

/// Lines of several threads may come out of order by so much.
const LAG_S: u64 = 60;

/// The names behind the numbers, from here on.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct TraceHead {
    /// Tells traffic traces apart: parts of one have the same.
    pub run: String,
    /// Counts the files of a trace that went round.
    pub part: u32,
    /// When this part begins, on the admission controller's clock.
    pub at: Time,
    /// The same for people.
    pub time: WallMs,
    /// Version of rayguard.
    pub rayguard: String,
    /// Module names.
    pub modules: Vec<String>,
    /// Classes, by number.
    pub classes: Vec<ClassHead>,
    /// Routes, by number: `GET /api/jobs/`; the operator's own are `own-1`, `own-2`, ...
    pub routes: Vec<String>,
    /// Signals, by number.
    pub signals: Vec<SignalHead>,
}

/// A class's name and what it was held to.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct ClassHead {
    /// Its name.
    pub name: String,
    /// Its module's name.
    pub module: String,
    /// Held open rather than answered.
    pub held: bool,
    /// Its latency objective, milliseconds.
    pub slo_ms: f64,
    /// The share that must be within it.
    pub slo_quantile: f64,
}

/// A signal's name and target.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct SignalHead {
    /// Its name.
    pub name: String,
    /// Its unit.
    pub unit: String,
    /// Where its pressure is 1.
    pub target: f64,
}

/// What became of a request.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Ending {
    /// Ray answered below 500.
    Served,
    /// Ray answered 500 or above, broke off or could not be reached.
    Failed,
    /// Its client left before Ray had answered.
    Abandoned,
    /// Its client left before it was sent.
    Left,
    /// It was given the answer to another's equal question.
    Shared,
    /// It was refused.
    Shed(Reason),
    /// It had not ended when the trace did.
    Open,
}

impl From<Outcome> for Ending {
    fn from(outcome: Outcome) -> Ending {
        match outcome {
            Outcome::Served => Ending::Served,
            Outcome::Failed => Ending::Failed,
            Outcome::Abandoned | Outcome::Cancelled => Ending::Abandoned,
            Outcome::Unsent => Ending::Left,
            Outcome::Unseen => Ending::Open,
        }
    }
}

/// One request, as it went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exchange {
    /// Number of its class.
    pub class: u16,
    /// Number of its route.
    pub route: u16,
    /// Who asked, by address: 1, 2, 3, ...; 0 is everybody beyond the table.
    pub address: u32,
    /// Who asked, by credential.
    pub credential: Option<u32>,
    /// What became of it.
    pub ending: Ending,
    /// The refusal that shadow mode did not carry out.
    pub would_shed: Option<Reason>,
    /// Waited for its turn, microseconds.
    pub waited_us: u64,
    /// From being sent on to its end, microseconds.
    pub latency_us: u64,
    /// Declared length of what was asked.
    pub asked_bytes: u64,
    /// Length of the answer.
    pub answered_bytes: u64,
}

/// A held connection that began.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Opened {
    /// Number of its class.
    pub class: u16,
    /// Number of its route.
    pub route: u16,
    /// Who asked, by address.
    pub address: u32,
    /// Who asked, by credential.
    pub credential: Option<u32>,
}

/// One line.
#[derive(Clone, PartialEq, Debug)]
pub enum TraceLine {
    /// Names.
    Head(Box<TraceHead>),
    /// A request came to its end.
    Exchange(Exchange),
    /// A held connection began.
    Opened(Opened),
    /// A limit from now on; a module's number for [`LimitKind::ModuleInFlight`].
    Limit(u16, LimitKind, f64),
    /// A reading: signal, value, age in microseconds.
    Signal(u16, f64, u64),
    /// Lines that are missing.
    Lost(u64),
    /// The end, and why: one word.
    End(String),
}

/// Puts lines on paper, with a marker for each new second.
#[derive(Clone, Debug, Default)]
pub struct Encoder {
    second: Option<u64>,
}

/// Whole microseconds of a point in time.
pub fn micros(at: Time) -> u64 {
    at.0 / 1_000
}

impl Encoder {
    /// The second that the last line counted from.
    pub fn second(&self) -> Option<u64> {
        self.second
    }

    /// Appends a line that happened at `at`.
    pub fn put(&mut self, at: Time, line: &TraceLine, out: &mut String) {
        // Writing to a String cannot fail.
        if let TraceLine::Head(head) = line {
            self.second = None;
            let json = serde_json::to_string(head).unwrap_or_default();
            let _ = writeln!(out, "{MAGIC}{VERSION} {json}");
            return;
        }
        let (second, us) = (micros(at) / 1_000_000, micros(at) % 1_000_000);
        if self.second != Some(second) {
            self.second = Some(second);
            let _ = writeln!(out, "@ {second}");
        }
        let _ = match line {
            TraceLine::Head(_) => Ok(()),
            TraceLine::Exchange(it) => writeln!(
                out,
                "r {us} {} {} {} {} {} {} {} {} {}",
                it.class,
                it.route,
                it.address,
                Credential(it.credential),
                Fate(it.ending, it.would_shed),
                it.waited_us,
                it.latency_us,
                it.asked_bytes,
                it.answered_bytes
            ),
            TraceLine::Opened(it) => {
                writeln!(out, "o {us} {} {} {} {}", it.class, it.route, it.address, Credential(it.credential))
            }
            TraceLine::Limit(of, kind, value) => writeln!(out, "l {us} {of} {} {value}", kind.label()),
            TraceLine::Signal(signal, value, age_us) => writeln!(out, "g {us} {signal} {value} {age_us}"),
            TraceLine::Lost(count) => writeln!(out, "! {us} {count}"),
            TraceLine::End(why) => writeln!(out, ". {us} {why}"),
        };
    }
}

struct Credential(Option<u32>);

impl std::fmt::Display for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(number) => number.fmt(f),
            None => f.write_str("-"),
        }
    }
}

struct Fate(Ending, Option<Reason>);

impl std::fmt::Display for Fate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (letter, reason) = match self.0 {
            Ending::Served => ("s", self.1),
            Ending::Failed => ("f", self.1),
            Ending::Abandoned => ("a", self.1),
            Ending::Left => ("l", self.1),
            Ending::Shared => ("c", self.1),
            Ending::Open => ("h", self.1),
            Ending::Shed(reason) => ("x", Some(reason)),
        };
        f.write_str(letter)?;
        reason.map_or(Ok(()), |reason| write!(f, ":{}", reason.label()))
    }
}

fn fate(text: &str) -> Option<(Ending, Option<Reason>)> {
    let (letter, reason) = match text.split_once(':') {
        Some((letter, label)) => (letter, Some(Reason::named(label)?)),
        None => (text, None),
    };
    Some(match (letter, reason) {
        ("s", _) => (Ending::Served, reason),
        ("f", _) => (Ending::Failed, reason),
        ("a", _) => (Ending::Abandoned, reason),
        ("l", _) => (Ending::Left, reason),
        ("c", _) => (Ending::Shared, reason),
        ("h", _) => (Ending::Open, reason),
        ("x", Some(reason)) => (Ending::Shed(reason), None),
        _ => return None,
    })
}

fn kind(label: &str) -> Option<LimitKind> {
    [LimitKind::InFlight, LimitKind::Rate, LimitKind::ModuleInFlight].into_iter().find(|k| k.label() == label)
}

/// What a line says, if it is one: a second, or something at so many microseconds within it.
enum Parsed {
    Second(u64),
    Head(Box<TraceHead>),
    At(u64, TraceLine),
}

fn after_magic(bytes: &[u8]) -> Option<&[u8]> {
    bytes.strip_prefix(MAGIC.as_bytes()).or_else(|| bytes.strip_prefix(MAGIC_BEFORE.as_bytes()))
}

/// Whether a file that begins so is a traffic trace, of whatever version.
pub fn is_trace(bytes: &[u8]) -> bool {
    after_magic(bytes).is_some()
}

fn parse(text: &str) -> Option<Parsed> {
    if let Some(rest) = text.strip_prefix(MAGIC).or_else(|| text.strip_prefix(MAGIC_BEFORE)) {
        let (version, json) = rest.split_once(' ')?;
        let known = version.parse() == Ok(VERSION);
        return known.then(|| serde_json::from_str(json).ok()).flatten().map(Parsed::Head);
    }
    let mut words = text.split(' ');
    let letter = words.next()?;
    if letter == "@" {
        let second = words.next()?.parse().ok()?;
        return words.next().is_none().then_some(Parsed::Second(second));
    }
    let us: u64 = words.next()?.parse().ok().filter(|us| *us < 1_000_000)?;
    let line = line(letter, &mut words)?;
    words.next().is_none().then_some(Parsed::At(us, line))
}

fn line<'a>(letter: &str, words: &mut impl Iterator<Item = &'a str>) -> Option<TraceLine> {
    fn next<'a, T: std::str::FromStr>(words: &mut impl Iterator<Item = &'a str>) -> Option<T> {
        words.next()?.parse().ok()
    }
    fn finite<'a>(words: &mut impl Iterator<Item = &'a str>) -> Option<f64> {
        next(words).filter(|value: &f64| value.is_finite())
    }
    fn credential(word: &str) -> Result<Option<u32>, std::num::ParseIntError> {
        if word == "-" { Ok(None) } else { word.parse().map(Some) }
    }
    Some(match letter {
        "r" => {
            let (class, route, address) = (next(words)?, next(words)?, next(words)?);
            let credential = credential(words.next()?).ok()?;
            let (ending, would_shed) = fate(words.next()?)?;
            TraceLine::Exchange(Exchange {
                class,
                route,
                address,
                credential,
                ending,
                would_shed,
                waited_us: next(words)?,
                latency_us: next(words)?,
                asked_bytes: next(words)?,
                answered_bytes: next(words)?,
            })
        }
        "o" => {
            let (class, route, address) = (next(words)?, next(words)?, next(words)?);
            TraceLine::Opened(Opened { class, route, address, credential: credential(words.next()?).ok()? })
        }
        "l" => TraceLine::Limit(next(words)?, kind(words.next()?)?, finite(words)?),
        "g" => TraceLine::Signal(next(words)?, finite(words)?, next(words)?),
        "!" => TraceLine::Lost(next(words)?),
        "." => TraceLine::End(words.next()?.to_owned()),
        _ => return None,
    })
}

/// A request at its time of arrival. Numbers are those of [`TrafficTrace`]'s own lists.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Arrival {
    /// When it knocked.
    pub at: Time,
    /// How it went.
    pub exchange: Exchange,
}

/// A limit from a moment on.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct LimitAt {
    /// When.
    pub at: Time,
    /// Number of class or module.
    pub of: u16,
    /// Which.
    pub kind: LimitKind,
    /// Its value.
    pub value: f64,
}

/// A reading at a moment.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct SignalAt {
    /// When it came.
    pub at: Time,
    /// Number of the signal.
    pub signal: u16,
    /// Its value.
    pub value: f64,
    /// How old it was.
    pub age: Duration,
}

/// A trace that has been read.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct TrafficTrace {
    /// Names, as of the first head; classes, routes and signals that a later head adds stand
    /// behind them.
    pub head: TraceHead,
    /// Requests, by arrival.
    pub arrivals: Vec<Arrival>,
    /// Limits, by time.
    pub limits: Vec<LimitAt>,
    /// Readings, by time.
    pub signals: Vec<SignalAt>,
    /// When it begins.
    pub from: Time,
    /// When it ends.
    pub until: Time,
    /// Lines that the recorder could not write.
    pub lost: u64,
    /// Earlier parts were overwritten: this is the end of something longer.
    pub beheaded: bool,
    /// Lines that cannot be read.
    pub unreadable: u64,
    /// The last line's word; `None`: it was cut off.
    pub end: Option<String>,
}

/// Why a trace cannot be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TrafficTraceError {
    /// Something else, or its first line is gone.
    #[error("not a trace: the first line does not begin with \"{}\"", MAGIC.trim_end())]
    NoHead,
    /// Of another version.
    #[error(
        "the trace has format {0}, and this rayguard reads format {VERSION}; use the version that wrote it"
    )]
    Version(String),
}

/// Reads the parts of a trace, oldest first.
#[derive(Clone, Debug, Default)]
pub struct Reader {
    trace: TrafficTrace,
    begun: bool,
    /// From the numbers of the head in force to the trace's own.
    classes: Vec<u16>,
    modules: Vec<u16>,
    routes: Vec<u16>,
    signals: Vec<u16>,
    second: Option<u64>,
    opened: Vec<(Time, Opened)>,
}

impl Reader {
    /// Reads one more part. What cannot be read is counted, and a last line without its end is
    /// left out: a number that was cut off would pass for a smaller one.
    ///
    /// # Errors
    /// It is no trace, or one of another version.
    pub fn read(&mut self, bytes: &[u8]) -> Result<(), TrafficTraceError> {
        let first = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let version = after_magic(first).ok_or(TrafficTraceError::NoHead)?;
        let version = version.split(|byte| *byte == b' ').next().unwrap_or_default();
        if version != VERSION.to_string().as_bytes() {
            let found = String::from_utf8_lossy(&version[..version.len().min(20)]).into_owned();
            return Err(TrafficTraceError::Version(found));
        }
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        self.trace.unreadable += u64::from(whole < bytes.len());
        for line in bytes[..whole].split_inclusive(|byte| *byte == b'\n') {
            let line = &line[..line.len() - 1];
            let parsed = std::str::from_utf8(line).ok().filter(|line| line.len() <= LINE_BYTES_MAX);
            let taken = match parsed.and_then(parse) {
                Some(Parsed::Head(head)) => {
                    self.begin(*head);
                    true
                }
                Some(Parsed::Second(second)) => self.turn_to(second),
                Some(Parsed::At(us, line)) => self.take(us, &line),
                None => false,
            };
            self.trace.unreadable += u64::from(!taken);
        }
        if self.begun { Ok(()) } else { Err(TrafficTraceError::NoHead) }
    }

    /// Another run's trace begins anew; a later part, or a reload, goes on.
    fn begin(&mut self, head: TraceHead) {
        if self.begun && head.run != self.trace.head.run {
            *self = Reader::default();
        }
        self.second = None;
        let own = &mut self.trace;
        if !self.begun {
            self.begun = true;
            own.from = head.at;
            own.beheaded = head.part > 0;
            own.head = TraceHead {
                classes: vec![],
                modules: vec![],
                routes: vec![],
                signals: vec![],
                ..head.clone()
            };
        }
        own.until = own.until.max(head.at);
        self.modules = merge(&mut own.head.modules, head.modules, |a, b| a == b);
        self.classes = merge(&mut own.head.classes, head.classes, |a, b| a.name == b.name);
        self.routes = merge(&mut own.head.routes, head.routes, |a, b| a == b);
        self.signals = merge(&mut own.head.signals, head.signals, |a, b| a.name == b.name);
    }

    fn turn_to(&mut self, second: u64) -> bool {
        let now = self.second.unwrap_or(micros(self.trace.until) / 1_000_000);
        let near = now.saturating_sub(LAG_S)..=now.saturating_add(LEAP_S);
        if self.begun && near.contains(&second) {
            self.second = Some(second);
            true
        } else {
            false
        }
    }

    /// Takes in a line; `false`: it cannot be of this trace.
    fn take(&mut self, us: u64, line: &TraceLine) -> bool {
        let Some(second) = self.second else { return false };
        let at = Time(second.saturating_mul(1_000_000).saturating_add(us).saturating_mul(1_000));
        let own = &mut self.trace;
        match line {
            TraceLine::Head(_) => return false,
            TraceLine::Exchange(it) => {
                let (Some(class), Some(route)) =
                    (number(&self.classes, it.class), number(&self.routes, it.route))
                else {
                    return false;
                };
                let lasted = it.waited_us.saturating_add(it.latency_us).saturating_mul(1_000);
                if lasted > at.0 {
                    return false; // longer than the proxy has been there
                }
                let at = Time(at.0.saturating_sub(lasted));
                own.arrivals.push(Arrival { at, exchange: Exchange { class, route, ..*it } });
            }
            TraceLine::Opened(it) => {
                let (Some(class), Some(route)) =
                    (number(&self.classes, it.class), number(&self.routes, it.route))
                else {
                    return false;
                };
                self.opened.push((at, Opened { class, route, ..*it }));
            }
            TraceLine::Limit(of, kind, value) => {
                let known = if *kind == LimitKind::ModuleInFlight { &self.modules } else { &self.classes };
                let Some(of) = number(known, *of) else { return false };
                own.limits.push(LimitAt { at, of, kind: *kind, value: *value });
            }
            TraceLine::Signal(signal, value, age_us) => {
                let Some(signal) = number(&self.signals, *signal) else { return false };
                let age = Duration::from_micros(*age_us);
                own.signals.push(SignalAt { at, signal, value: *value, age });
            }
            TraceLine::Lost(count) => own.lost = own.lost.saturating_add(*count),
            TraceLine::End(why) => own.end = Some(why.clone()),
        }
        own.until = own.until.max(at);
        true
    }

    /// The whole, with what was still open at its end.
    ///
    /// # Errors
    /// Nothing has been read.
    pub fn finish(self) -> Result<TrafficTrace, TrafficTraceError> {
        if !self.begun {
            return Err(TrafficTraceError::NoHead);
        }
        let mut own = self.trace;
        let mut ended: BTreeMap<(u64, Opened), u32> = BTreeMap::new();
        for Arrival { at, exchange } in &own.arrivals {
            let Exchange { class, route, address, credential, .. } = *exchange;
            let admitted = micros(*at).saturating_add(exchange.waited_us);
            *ended.entry((admitted, Opened { class, route, address, credential })).or_default() += 1;
        }
        for (at, opened) in self.opened {
            match ended.get_mut(&(micros(at), opened)) {
                Some(left) if *left > 0 => *left -= 1,
                _ => own.arrivals.push(Arrival {
                    at,
                    exchange: Exchange {
                        class: opened.class,
                        route: opened.route,
                        address: opened.address,
                        credential: opened.credential,
                        ending: Ending::Open,
                        would_shed: None,
                        waited_us: 0,
                        latency_us: micros(own.until).saturating_sub(micros(at)),
                        asked_bytes: 0,
                        answered_bytes: 0,
                    },
                }),
            }
        }
        own.arrivals.sort_by_key(|arrival| arrival.at);
        own.limits.sort_by_key(|limit| limit.at);
        own.signals.sort_by_key(|signal| signal.at);
        Ok(own)
    }
}

/// Reads a trace that is one part.
///
/// # Errors
/// As [`Reader::read`].
pub fn read(bytes: &[u8]) -> Result<TrafficTrace, TrafficTraceError> {
    let mut reader = Reader::default();
    reader.read(bytes)?;
    reader.finish()
}

/// Where the new names stand among those known; the unknown are added. Names beyond what a
/// number can hold are left out.
fn merge<T>(known: &mut Vec<T>, new: Vec<T>, same: impl Fn(&T, &T) -> bool) -> Vec<u16> {
    let mut places = Vec::with_capacity(new.len());
    for name in new {
        let at = known.iter().position(|old| same(old, &name)).unwrap_or_else(|| {
            known.push(name);
            known.len() - 1
        });
        places.push(u16::try_from(at).unwrap_or(u16::MAX));
    }
    places
}

fn number(places: &[u16], at: u16) -> Option<u16> {
    places.get(usize::from(at)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn head(part: u32) -> TraceHead {
        let class = |name: &str, held| ClassHead {
            name: name.into(),
            module: "JobHead".into(),
            held,
            slo_ms: 1000.0,
            slo_quantile: 0.95,
        };
        TraceHead {
            run: "a".into(),
            part,
            modules: vec!["JobHead".into()],
            classes: vec![class("job-list", false), class("log-tail", true)],
            routes: vec!["(unlisted)".into(), "GET /api/jobs/".into()],
            signals: vec![SignalHead { name: "head_cpu".into(), unit: "%".into(), target: 85.0 }],
            ..TraceHead::default()
        }
    }

    fn exchange(ending: Ending) -> Exchange {
        Exchange {
            class: 0,
            route: 1,
            address: 3,
            credential: Some(1),
            ending,
            would_shed: None,
            waited_us: 20,
            latency_us: 5_000,
            asked_bytes: 7,
            answered_bytes: 811,
        }
    }

    fn written(lines: &[(Time, TraceLine)]) -> String {
        let (mut encoder, mut out) = (Encoder::default(), String::new());
        encoder.put(Time::ZERO, &TraceLine::Head(Box::new(head(0))), &mut out);
        for (at, line) in lines {
            encoder.put(*at, line, &mut out);
        }
        out
    }

    fn at(seconds: f64) -> Time {
        Time::from_secs_f64(seconds)
    }

    #[test]
    fn what_is_written_is_read() {
        let shadow = Exchange { would_shed: Some(Reason::ClassRate), ..exchange(Ending::Served) };
        let text = written(&[
            (at(0.5), TraceLine::Limit(0, LimitKind::InFlight, 12.5)),
            (at(1.0), TraceLine::Exchange(exchange(Ending::Shed(Reason::ModuleInFlight)))),
            (at(1.25), TraceLine::Exchange(shadow)),
            (at(2.0), TraceLine::Signal(0, 87.5, 5_000_000)),
            (at(3.0), TraceLine::Lost(31)),
            (at(4.0), TraceLine::End("stopped".into())),
        ]);
        let read = read(text.as_bytes()).unwrap();
        assert_eq!(read.arrivals.len(), 2);
        assert_eq!(read.arrivals[0].at, Time(994_980_000), "arrival is end less latency and wait");
        assert_eq!(read.arrivals[1].exchange, shadow);
        assert_eq!((read.limits[0].value, read.signals[0].value), (12.5, 87.5));
        assert_eq!((read.lost, read.unreadable, read.end.as_deref()), (31, 0, Some("stopped")));
        assert_eq!(read.until, at(4.0));
    }

    #[test]
    fn a_held_connection_that_did_not_end_is_there_all_the_same() {
        let opened = Opened { class: 1, route: 1, address: 3, credential: Some(1) };
        let ended = Exchange { class: 1, latency_us: 2_000_000, waited_us: 0, ..exchange(Ending::Served) };
        let text = written(&[
            (at(1.0), TraceLine::Opened(opened)),
            (at(1.5), TraceLine::Opened(opened)),
            (at(3.0), TraceLine::Exchange(ended)),
            (at(9.0), TraceLine::End("stopped".into())),
        ]);
        let read = read(text.as_bytes()).unwrap();
        let endings: Vec<_> = read.arrivals.iter().map(|it| (it.at, it.exchange.ending)).collect();
        assert_eq!(endings, [(at(1.0), Ending::Served), (at(1.5), Ending::Open)]);
        assert_eq!(read.arrivals[1].exchange.latency_us, 7_500_000);
    }

    #[test]
    fn a_reload_renumbers_and_the_names_stay_true() {
        let mut text = written(&[(at(1.0), TraceLine::Exchange(exchange(Ending::Served)))]);
        let mut other = head(0);
        other.classes.reverse();
        let mut encoder = Encoder::default();
        encoder.put(at(2.0), &TraceLine::Head(Box::new(other)), &mut text);
        encoder.put(
            at(2.0),
            &TraceLine::Exchange(Exchange { class: 1, ..exchange(Ending::Served) }),
            &mut text,
        );
        let read = read(text.as_bytes()).unwrap();
        assert!(read.arrivals.iter().all(|it| it.exchange.class == 0), "job-list, twice");
    }

    #[test]
    fn parts_are_joined_and_another_run_is_not() {
        let text = |run: &str, part| {
            let mut out = String::new();
            let mut encoder = Encoder::default();
            encoder.put(
                Time::ZERO,
                &TraceLine::Head(Box::new(TraceHead { run: run.into(), ..head(part) })),
                &mut out,
            );
            encoder.put(at(1.0), &TraceLine::Exchange(exchange(Ending::Served)), &mut out);
            out
        };
        let joined = |old: &str| {
            let mut reader = Reader::default();
            reader.read(old.as_bytes()).unwrap();
            reader.read(text("a", 4).as_bytes()).unwrap();
            reader.finish().unwrap()
        };
        assert_eq!(joined(&text("a", 3)).arrivals.len(), 2);
        assert!(joined(&text("a", 3)).beheaded);
        assert_eq!(joined(&text("b", 0)).arrivals.len(), 1);
    }

    #[test]
    fn what_is_no_trace_is_said() {
        assert_eq!(read(b"at_s,route\n"), Err(TrafficTraceError::NoHead));
        assert_eq!(read(b""), Err(TrafficTraceError::NoHead));
        assert_eq!(read(b"rayguard-trace 1 {not json\n"), Err(TrafficTraceError::NoHead));
        let error = read(b"rayguard-trace 9 {}\n").unwrap_err();
        assert!(error.to_string().contains("format 9"), "{error}");
    }

    #[test]
    fn spoilt_lines_cost_themselves_alone() {
        let good = written(&[(at(1.0), TraceLine::Exchange(exchange(Ending::Served)))]);
        for bad in [
            "r 5 0 1 3 1 s 0 5000 0",
            "r 5 0 1 3 1 z 0 5000 0 1",
            "r 5 9 1 3 1 s 0 5000 0 1",
            "r 1000000 0 1 3 1 s 0 5000 0 1",
            "r 5 0 1 3 1 x 0 5000 0 1",
            "g 5 0 NaN 1",
            "l 5 0 in_flight inf",
            "@ 99999999999",
            "what",
            "",
        ] {
            let text = format!("{good}{bad}\nr 9 0 1 3 - s 0 1 0 1\n");
            let read = read(text.as_bytes()).unwrap();
            assert_eq!((read.arrivals.len(), read.unreadable), (2, 1), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_trace_cut_anywhere_is_read_up_to_the_cut(cut in 0.0..1.0_f64, count in 1..60_usize) {
            let lines: Vec<_> =
                (0..count).map(|n| (at((n + 1) as f64 * 0.3), TraceLine::Exchange(exchange(Ending::Served)))).collect();
            let text = written(&lines);
            let first = text.find('\n').unwrap() + 1;
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a place in the text")]
            let cut = first + ((text.len() - first) as f64 * cut) as usize;
            let read = read(&text.as_bytes()[..cut]).unwrap();
            let whole = text[..cut].lines().filter(|line| line.starts_with("r ")).count();
            prop_assert!(read.arrivals.len() == whole || read.arrivals.len() + 1 == whole);
            prop_assert!(read.unreadable <= 1);
            prop_assert!(read.arrivals.iter().all(|it| it.exchange == exchange(Ending::Served)));
        }

        #[test]
        fn garbage_is_never_a_panic_and_never_drowns_the_rest(
            garbage in proptest::collection::vec(any::<u8>(), 0..400),
            place in 0..3_usize,
        ) {
            let lines: Vec<_> =
                (1..4).map(|n| (at(f64::from(n)), TraceLine::Exchange(exchange(Ending::Served)))).collect();
            let text = written(&lines);
            let mut split: Vec<&[u8]> = text.as_bytes().split_inclusive(|byte| *byte == b'\n').collect();
            let spoilt = [b"\xff", &*garbage, b"\n"].concat();
            split.insert(1 + 2 * place, &spoilt);
            let read = read(&split.concat()).unwrap();
            prop_assert!(read.arrivals.len() >= 3);
            prop_assert!(read.unreadable >= 1);
            let _ = super::read(&garbage);
        }

        #[test]
        fn every_exchange_survives_the_way_to_the_disk_and_back(
            class in 0..2_u16, route in 0..2_u16, address: u32, credential: Option<u32>,
            ending in 0..5 + Reason::ALL.len(), waited in 0..1_000_000_u64, latency in 0..10_000_000_000_u64,
            asked: u64, answered: u64, us in 20_000_000_000..40_000_000_000_u64,
        ) {
            let ending = match ending {
                0 => Ending::Served,
                1 => Ending::Failed,
                2 => Ending::Abandoned,
                3 => Ending::Left,
                4 => Ending::Shared,
                n => Ending::Shed(Reason::ALL[n - 5]),
            };
            let exchange = Exchange {
                class, route, address, credential, ending, would_shed: None,
                waited_us: waited, latency_us: latency, asked_bytes: asked, answered_bytes: answered,
            };
            let text = written(&[(Time(us * 1_000), TraceLine::Exchange(exchange))]);
            let read = read(text.as_bytes()).unwrap();
            prop_assert_eq!(read.arrivals.len(), 1);
            prop_assert_eq!(read.arrivals[0].exchange, exchange);
            prop_assert_eq!(micros(read.arrivals[0].at), us - waited - latency);
        }
    }
}
