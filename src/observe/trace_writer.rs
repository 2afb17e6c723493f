//! How does a trace reach the disk without costing the proxy anything?
//!
//! The proxy hands over what happened as a small value, into a bounded queue that is only ever
//! *tried*; what does not fit is counted, and the trace itself says so. The proxy wakes no
//! thread for that: one thread looks at the queue twenty times a second, so that a request pays
//! for a slot in an array and no more. That thread makes lines of it
//! ([`traffic_trace`](crate::core::traffic_trace) has their words), gives clients their small numbers
//! and writes.
//!
//! A trace is bounded: at half its size the file becomes `FILE.1`, in the place of an older
//! one, and a new one begins with the names and limits of the moment. So the two of them hold
//! the latest, and a reader is told when the beginning is gone. A disk that fails costs lines,
//! which are counted, and never a request.
//!
//! What cannot get in: the notes have no field for a path, an address, a credential or a body.
//! Addresses and credentials come as keyed digests and leave as 1, 2, 3 in the order of
//! appearance; the table from one to the other is never written.

use crate::core::admission::table::LimitTable;
use crate::core::event::LimitKind;
use crate::core::policy::{Kind, Policy};
use crate::core::request::catalogue::{ROUTES, Surface};
use crate::core::request::classify::UNLISTED;
use crate::core::signal::reading::Reading;
use crate::core::time::{Time, WallMs};
use crate::core::traffic_trace::{
    ClassHead, Encoder, Exchange, Opened, SignalHead, TraceHead, TraceLine, micros,
};
use crate::proxy::trace::{self, Note, Passed, Queue, TraceSender};
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::TryRecvError;
use std::time::Duration;

/// How often the queue is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// What the queue holds: a third of a million requests a second between two looks.
const QUEUE: usize = 16_384;
/// Lines are gathered up to this before they are written.
const GATHER_BYTES: usize = 64 * 1024;
/// Clients that get numbers of their own; the others share 0.
const CLIENTS_MAX: usize = 1 << 16;
/// The least size of a trace: two parts, each with its names.
pub const BYTES_MIN: u64 = 1 << 20;
/// The size of a trace where none is said: some two million requests.
pub const BYTES_DEFAULT: u64 = 64 << 20;

/// What a trace came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TraceSummary {
    /// Exchanges written.
    pub exchanges: u64,
    /// Lines lost.
    pub lost: u64,
}

/// The disk's end.
#[derive(Debug)]
pub struct TraceThread {
    queue: Queue,
    pages: Pages,
    clients: HashMap<(bool, u64), u32>,
    counts: [u32; 2],
    generation: Option<u32>,
    limits: Option<Arc<LimitTable>>,
    fresh: Vec<u64>,
    last: Time,
    tally: TraceSummary,
}

/// Begins a trace in a file that is not there yet; see [`unused`].
///
/// # Errors
/// The file cannot be made.
pub fn channel(path: &Path, bytes_max: u64) -> io::Result<(TraceSender, TraceThread)> {
    let pages = Pages::open(path, bytes_max)?;
    let (trace, queue) = trace::channel(QUEUE);
    let thread = TraceThread {
        queue,
        pages,
        clients: HashMap::new(),
        counts: [0; 2],
        generation: None,
        limits: None,
        fresh: Vec::new(),
        last: Time::ZERO,
        tally: TraceSummary::default(),
    };
    Ok((trace, thread))
}

/// The names behind the numbers of a policy.
pub fn names(policy: &Policy, own_routes: usize, at: Time, time: WallMs) -> Box<TraceHead> {
    let module = |class: &crate::core::policy::Class| policy.modules[class.module.index()].name.to_string();
    let unlisted = Surface::ALL.iter().map(|_| UNLISTED.to_owned());
    let rays = ROUTES.iter().map(|route| format!("{} {}", route.method, route.path));
    // The operator's patterns are the operator's own words, and stay at home.
    let own = (1..=own_routes).map(|at| format!("own-{at}"));
    Box::new(TraceHead {
        run: format!("{:x}", time.0),
        part: 0,
        at,
        time,
        rayguard: env!("CARGO_PKG_VERSION").to_owned(),
        modules: policy.modules.iter().map(|module| module.name.to_string()).collect(),
        classes: policy
            .classes
            .iter()
            .map(|class| ClassHead {
                name: class.name.to_string(),
                module: module(class),
                held: class.kind == Kind::Held,
                slo_ms: class.slo.latency.as_secs_f64() * 1e3,
                slo_quantile: class.slo.quantile,
            })
            .collect(),
        routes: unlisted.chain(rays).chain(own).collect(),
        signals: policy
            .signals
            .iter()
            .map(|signal| SignalHead {
                name: signal.name.to_string(),
                unit: signal.unit.to_string(),
                target: signal.target,
            })
            .collect(),
    })
}

impl TraceThread {
    /// Writes until every [`TraceSender`] is dropped. Blocks: run it on a thread of its own.
    pub fn run(mut self) -> TraceSummary {
        while self.look() {
            self.pages.flush();
            std::thread::sleep(LOOK_EVERY);
        }
        self.pages.write(self.last, &TraceLine::End("stopped".to_owned()));
        self.pages.flush();
        TraceSummary { lost: self.tally.lost + self.pages.lost_all, ..self.tally }
    }

    /// Takes what is there; `false`: nothing will come any more.
    fn look(&mut self) -> bool {
        let more = loop {
            match self.queue.try_recv() {
                Ok((now, note)) => {
                    self.last = self.last.max(now);
                    self.take(now, note);
                }
                Err(TryRecvError::Empty) => break true,
                Err(TryRecvError::Disconnected) => break false,
            }
        };
        let missed = self.queue.take_lost();
        self.lose(missed);
        more
    }

    fn lose(&mut self, missed: u64) {
        if missed > 0 {
            self.tally.lost += missed;
            self.pages.write(self.last, &TraceLine::Lost(missed));
        }
    }

    fn take(&mut self, now: Time, note: Note) {
        match note {
            Note::Names(generation, head) => {
                self.generation = Some(generation);
                self.limits = None;
                self.fresh.clear();
                self.pages.name(*head);
            }
            Note::Passed(passed) | Note::Opened(passed) if self.generation != Some(passed.generation) => {
                // Numbered by a policy that is gone: it would be booked on the wrong class.
                self.lose(1);
            }
            Note::Passed(passed) => {
                let exchange = self.exchange(now, &passed);
                self.tally.exchanges += 1;
                self.pages.write(now, &TraceLine::Exchange(exchange));
            }
            Note::Opened(passed) => {
                let Exchange { class, route, address, credential, .. } = self.exchange(now, &passed);
                self.pages
                    .write(passed.admitted, &TraceLine::Opened(Opened { class, route, address, credential }));
            }
            Note::Table(table) => {
                let before = self.limits.take();
                for line in changes(before.as_deref(), &table) {
                    self.pages.limit(now, &line);
                }
                self.limits = Some(table);
            }
            Note::Readings(readings) => {
                for reading in readings {
                    self.reading(now, &reading);
                }
            }
        }
        if self.pages.text.len() >= GATHER_BYTES {
            self.pages.flush();
        }
    }

    fn exchange(&mut self, now: Time, passed: &Passed) -> Exchange {
        let address = self.number(false, passed.client.address);
        let credential = passed.client.credential.map(|digest| self.number(true, digest));
        // The difference of whole microseconds, so that arrivals can be had back exactly.
        let latency_us = micros(now).saturating_sub(micros(passed.admitted));
        Exchange {
            class: u16::from(passed.class.0),
            route: passed.route,
            address,
            credential,
            ending: passed.ending,
            would_shed: passed.would_shed,
            waited_us: u64::try_from(passed.waited.as_micros()).unwrap_or(u64::MAX),
            latency_us,
            asked_bytes: passed.asked_bytes,
            answered_bytes: passed.answered_bytes,
        }
    }

    /// A client's number: 1, 2, 3 in the order of appearance, for addresses and credentials apart.
    fn number(&mut self, credential: bool, digest: u64) -> u32 {
        if let Some(number) = self.clients.get(&(credential, digest)) {
            return *number;
        }
        if self.clients.len() >= CLIENTS_MAX {
            return 0;
        }
        let count = &mut self.counts[usize::from(credential)];
        *count += 1;
        self.clients.insert((credential, digest), *count);
        *count
    }

    /// A reading that says something new.
    fn reading(&mut self, now: Time, reading: &Reading) {
        let at = reading.signal.index();
        if self.fresh.len() <= at {
            self.fresh.resize(at + 1, 0);
        }
        if self.fresh[at] == reading.fresh || !reading.value.is_finite() {
            return;
        }
        self.fresh[at] = reading.fresh;
        let age_us = micros(now).saturating_sub(micros(reading.at));
        let line = TraceLine::Signal(u16::from(reading.signal.0), reading.value, age_us);
        self.pages.write(now, &line);
    }
}

/// The limits of `after` that differ from `before`; all of them where there is no before.
fn changes(before: Option<&LimitTable>, after: &LimitTable) -> Vec<TraceLine> {
    let number = |at: usize| u16::try_from(at).unwrap_or(u16::MAX);
    let mut lines = Vec::new();
    let mut put = |at: usize, kind, old: Option<f64>, new: f64| {
        let moved = old.is_none_or(|old| old.to_bits() != new.to_bits());
        if moved && new.is_finite() {
            lines.push(TraceLine::Limit(number(at), kind, new));
        }
    };
    for (at, class) in after.classes.iter().enumerate() {
        let old = before.and_then(|table| table.classes.get(at));
        put(at, LimitKind::InFlight, old.map(|old| old.in_flight), class.in_flight);
        if let Some(rate) = class.rate {
            put(at, LimitKind::Rate, old.and_then(|old| old.rate), rate);
        }
    }
    for (at, module) in after.modules.iter().enumerate() {
        let old = before.and_then(|table| table.modules.get(at));
        put(at, LimitKind::ModuleInFlight, old.map(|old| old.in_flight), module.in_flight);
    }
    lines
}

/// The file, gathered lines, and what a new part begins with.
#[derive(Debug)]
struct Pages {
    path: PathBuf,
    part_bytes_max: u64,
    file: Option<File>,
    bytes: u64,
    encoder: Encoder,
    text: String,
    /// Lines in `text`.
    lines: u64,
    head: Option<TraceHead>,
    limits: BTreeMap<(u16, LimitKind), f64>,
    /// The second that the next gathered lines count from, unless they say another.
    second: Option<u64>,
    /// The latest of what was written.
    last: Time,
    /// Lines that could not be written and are not owned up to yet.
    lost: u64,
    lost_all: u64,
}

impl Pages {
    fn open(path: &Path, bytes_max: u64) -> io::Result<Pages> {
        let part_bytes_max = bytes_max.max(BYTES_MIN) / 2 - GATHER_BYTES as u64;
        Ok(Pages {
            path: path.to_owned(),
            part_bytes_max,
            file: Some(create(path)?),
            bytes: 0,
            encoder: Encoder::default(),
            text: String::new(),
            lines: 0,
            head: None,
            limits: BTreeMap::new(),
            second: None,
            last: Time::ZERO,
            lost: 0,
            lost_all: 0,
        })
    }

    fn write(&mut self, at: Time, line: &TraceLine) {
        self.encoder.put(at, line, &mut self.text);
        self.lines += 1;
        self.last = self.last.max(at);
    }

    fn limit(&mut self, at: Time, line: &TraceLine) {
        if let TraceLine::Limit(of, kind, value) = line {
            self.limits.insert((*of, *kind), *value);
        }
        self.write(at, line);
    }

    /// New names from here on. They belong to the run that the first names began.
    fn name(&mut self, head: TraceHead) {
        let head = match &self.head {
            Some(first) => TraceHead { run: first.run.clone(), part: first.part, ..head },
            None => head,
        };
        self.limits.clear();
        self.write(head.at, &TraceLine::Head(Box::new(head.clone())));
        self.head = Some(head);
    }

    /// Writes what is gathered, and turns the page when it is full.
    fn flush(&mut self) {
        if self.text.is_empty() && self.lost == 0 {
            return;
        }
        if self.bytes > 0 && self.bytes + self.text.len() as u64 > self.part_bytes_max {
            self.turn();
        }
        if self.lost > 0 {
            // A torn line is ended first; the reader counts it and goes on.
            self.text.insert_str(0, &format!("\n! 0 {}\n", self.lost));
            self.lines += 1;
        }
        let written = match &mut self.file {
            Some(file) => file.write_all(self.text.as_bytes()),
            None => create(&self.path).and_then(|mut file| {
                self.bytes = 0;
                let written = file.write_all(self.text.as_bytes());
                self.file = Some(file);
                written
            }),
        };
        match written {
            Ok(()) => {
                self.bytes += self.text.len() as u64;
                self.lost = 0;
            }
            Err(problem) => {
                if self.lost == 0 {
                    tracing::error!(path = %self.path.display(), %problem, "cannot write the trace; lines are counted as lost until it can be written again");
                }
                self.lost += self.lines;
                self.lost_all += self.lines;
                self.encoder = Encoder::default();
            }
        }
        self.text.clear();
        self.lines = 0;
        self.second = self.encoder.second();
    }

    /// The file becomes the older part, and a new one begins with the names and limits there are.
    fn turn(&mut self) {
        let begun = fs::rename(&self.path, older(&self.path)).and_then(|()| create(&self.path));
        let Ok(file) = begun else { return };
        self.file = Some(file);
        self.bytes = 0;
        let Some(head) = &mut self.head else { return };
        let ahead = self.last.since(head.at);
        head.part += 1;
        head.at = self.last;
        head.time = WallMs(head.time.0 + u64::try_from(ahead.as_millis()).unwrap_or(0));
        let rest = std::mem::take(&mut self.text);
        let mut encoder = Encoder::default();
        encoder.put(head.at, &TraceLine::Head(Box::new(head.clone())), &mut self.text);
        for ((of, kind), value) in &self.limits {
            encoder.put(head.at, &TraceLine::Limit(*of, *kind, *value), &mut self.text);
        }
        if let Some(second) = self.second {
            self.text.push_str("@ ");
            self.text.push_str(&second.to_string());
            self.text.push('\n');
        }
        self.text.push_str(&rest);
    }
}

fn create(path: &Path) -> io::Result<File> {
    // It names no client; still, only the owner may read it.
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// The path itself, or where a trace is there already, one with the time in its name: no trace is overwritten.
pub fn unused(path: &Path, now: WallMs) -> PathBuf {
    if !path.exists() && !older(path).exists() {
        return path.to_owned();
    }
    let time: String = now.rfc3339().chars().filter(|c| !matches!(c, '-' | ':' | '.')).collect();
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push(format!("-{time}"));
    if let Some(extension) = path.extension() {
        name.push(".");
        name.push(extension);
    }
    path.with_file_name(name)
}

/// The older part of a trace.
pub fn older(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::policy::ClassId;
    use crate::core::request::client_id::ClientId;
    use crate::core::traffic_trace::Ending;
    use crate::core::traffic_trace::{Reader, TrafficTrace};
    use proptest::prelude::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let dir = std::env::temp_dir().join(format!("rayguard-recorder-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&dir);
            fs::create_dir_all(&dir).unwrap();
            Folder(dir)
        }
        fn file(&self) -> PathBuf {
            self.0.join("a.rec")
        }
        fn read(&self) -> TrafficTrace {
            let mut reader = Reader::default();
            if let Ok(old) = fs::read(older(&self.file())) {
                reader.read(&old).unwrap();
            }
            reader.read(&fs::read(self.file()).unwrap()).unwrap();
            reader.finish().unwrap()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn policy() -> Arc<Policy> {
        let settings = crate::config::parse("", "test", &crate::config::Overrides::default()).unwrap();
        Arc::clone(&settings.policy)
    }

    fn passed(generation: u32, address: u64) -> Passed {
        Passed {
            generation,
            class: ClassId(3),
            route: 9,
            client: ClientId { address, credential: Some(0xdead_beef) },
            ending: Ending::Served,
            would_shed: None,
            admitted: Time(1_000_000),
            waited: Duration::ZERO,
            asked_bytes: 0,
            answered_bytes: 5,
        }
    }

    fn begin(folder: &Folder, bytes_max: u64) -> (TraceSender, TraceThread) {
        let (trace_writer, thread) = channel(&folder.file(), bytes_max).unwrap();
        let policy = policy();
        let head = names(&policy, 2, Time::ZERO, WallMs(1_795_000_000_000));
        trace_writer.note(Time::ZERO, Note::Names(0, head));
        trace_writer.note(Time::ZERO, Note::Table(Arc::new(LimitTable::initial(&policy))));
        (trace_writer, thread)
    }

    #[test]
    fn what_passed_is_read_back_with_its_limits_and_clients_as_small_numbers() {
        let folder = Folder::new("back");
        let (trace_writer, thread) = begin(&folder, BYTES_DEFAULT);
        for address in [77, 78, 77] {
            trace_writer.note(Time(2_000_000), Note::Passed(passed(0, address)));
        }
        trace_writer.note(Time(3_000_000), Note::Passed(passed(9, 77)));
        drop(trace_writer);
        let tally = thread.run();
        assert_eq!(tally, TraceSummary { exchanges: 3, lost: 1 });
        let read = folder.read();
        let addresses: Vec<u32> = read.arrivals.iter().map(|it| it.exchange.address).collect();
        assert_eq!(addresses, [1, 2, 1]);
        assert_eq!(read.lost, 1, "numbered by another policy");
        assert_eq!(read.end.as_deref(), Some("stopped"));
        assert!(read.limits.len() > 20);
        assert!(read.head.routes.contains(&"own-2".to_owned()));
    }

    #[test]
    fn a_trace_stays_within_its_size_and_keeps_the_latest() {
        let folder = Folder::new("size");
        let (trace_writer, mut thread) = begin(&folder, BYTES_MIN);
        let total = 60_000_u64;
        for n in 0..total {
            trace_writer.note(Time(n * 1_000_000), Note::Passed(passed(0, n % 5)));
            if n % 10_000 == 0 {
                thread.look();
            }
        }
        drop(trace_writer);
        thread.run();
        let size = |path: &Path| fs::metadata(path).unwrap().len();
        assert!(size(&folder.file()) + size(&older(&folder.file())) <= BYTES_MIN);
        let read = folder.read();
        assert!(read.beheaded && read.unreadable == 0, "{} {}", read.beheaded, read.unreadable);
        assert_eq!(read.until, Time((total - 1) * 1_000_000));
        let kept = read.arrivals.len() as u64;
        assert!(kept > 12_000 && kept < total, "{kept}");
        assert!(read.limits.iter().all(|limit| limit.at >= read.from), "limits are told again");
        let gaps = read.arrivals.windows(2).all(|pair| pair[1].at.0 - pair[0].at.0 <= 1_000_000);
        assert!(gaps, "nothing is missing between the parts");
    }

    #[test]
    fn what_does_not_fit_the_queue_is_owned_up_to() {
        let folder = Folder::new("full");
        let (trace_writer, thread) = begin(&folder, BYTES_DEFAULT);
        for n in 0..QUEUE as u64 {
            trace_writer.note(Time(n), Note::Passed(passed(0, 1)));
        }
        drop(trace_writer);
        assert_eq!(thread.run().lost, 2, "names and limits took two places");
        assert_eq!(folder.read().lost, 2);
    }

    #[test]
    fn a_trace_is_never_overwritten() {
        let folder = Folder::new("aside");
        let (file, now) = (folder.file(), WallMs(1_795_000_000_000));
        assert_eq!(unused(&file, now), file);
        for path in [file.clone(), older(&file)] {
            fs::write(&path, "an earlier trace").unwrap();
            let fresh = unused(&file, now);
            assert_eq!(fresh.parent(), file.parent());
            assert!(fresh.to_string_lossy().contains("-20261118T"), "{}", fresh.display());
            assert!(!fresh.exists() && !older(&fresh).exists());
            fs::remove_file(&path).unwrap();
        }
        fs::write(&file, "an earlier trace").unwrap();
        assert!(channel(&file, BYTES_DEFAULT).is_err(), "not even when asked to");
        assert_eq!(fs::read_to_string(&file).unwrap(), "an earlier trace");
    }

    proptest! {
        #[test]
        fn no_more_clients_are_told_apart_than_the_table_holds(digests in proptest::collection::vec(any::<u64>(), 1..200)) {
            let folder = Folder::new("clients");
            let (_, mut thread) = begin(&folder, BYTES_DEFAULT);
            let numbers: Vec<u32> = digests.iter().map(|digest| thread.number(false, *digest)).collect();
            for (at, digest) in digests.iter().enumerate() {
                prop_assert_eq!(numbers[at], thread.number(false, *digest), "a number is kept");
            }
            let distinct: std::collections::BTreeSet<_> = digests.iter().collect();
            prop_assert_eq!(numbers.iter().max().copied(), u32::try_from(distinct.len()).ok());
        }
    }
}
