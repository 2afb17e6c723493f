//! How does the adjustment log reach the disk, and what if the disk is not there?
//!
//! The proxy must never wait for the adjustment log, and the adjustment log must never lose a line in silence.
//! Both hold because of what stands between them: a bounded queue that is only ever *tried*
//! ([`AdjustmentLog::record`]), and a count of what did not fit. One thread ([`LogThread::run`]) takes
//! entries off the queue and appends them to `adjustments.jsonl`, one JSON object a line.
//!
//! When a line cannot be written (disk full, read-only, the directory gone), it is counted and
//! the next attempt follows a second later; the first thing written when it works again is a
//! `gap` event with the count and the reason. Sequence numbers are given out to lost events
//! too, so the hole shows even without it. A kill in the middle of a write leaves a torn last
//! line: it is kept, ended with a line break, and marked by a `gap` when the file is opened
//! again; readers pass over it and say so. Sequence numbers go on across restarts.
//!
//! A file that has reached its size becomes `adjustments.jsonl.1`, that one `.2`, and so on; the
//! oldest beyond `files_max` is deleted. A file that somebody else moved away or deleted is
//! noticed at the next line. Reading ([`Reader`]) streams from the oldest file to the newest
//! and holds one line at a time.
//!
//! [`Writer`] is plain `std::fs` and needs neither thread nor clock: the entries
//! themselves give it the time.

use crate::core::event::{Event, Gap, LoggedEvent};
use crate::core::time::{Time, WallMs};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

/// The current file's name in the adjustment log's directory.
pub const FILE_NAME: &str = "adjustments.jsonl";
/// A line longer than this is no event.
const LINE_BYTES_MAX: usize = 1 << 20;
/// After a failed write, the next attempt waits for so long.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// More rotated files than this are not looked for.
const AGE_MAX: usize = 10_000;
/// Lines are forced to the disk so often. They reach the operating system at once in any case, so that only a
/// crash of the machine itself can lose what is not yet forced.
const SYNC_EVERY: Duration = Duration::from_secs(1);

/// Where and how much.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// Its directory; made if it is not there.
    pub dir: PathBuf,
    /// Bytes of one file before the next is begun.
    pub file_bytes_max: u64,
    /// Files kept, the current one included; at least 1.
    pub files_max: usize,
}

/// One event on its way to the adjustment log.
#[derive(Clone, PartialEq, Debug)]
pub struct Entry {
    /// Wall time, for people.
    pub time: WallMs,
    /// Monotone time.
    pub at: Time,
    /// What happened.
    pub event: Event,
}

/// The proxy's end: hands entries over and never waits. Copies share one queue.
#[derive(Clone, Debug)]
pub struct AdjustmentLog {
    queue: SyncSender<Entry>,
    overflow: Arc<AtomicU64>,
    lost: Arc<AtomicU64>,
}

/// The disk's end.
pub struct LogThread {
    queue: Receiver<Entry>,
    overflow: Arc<AtomicU64>,
    writer: Writer,
}

/// A queue of `len` entries in front of a writer.
pub fn channel(writer: Writer, len: usize) -> (AdjustmentLog, LogThread) {
    let (sender, queue) = sync_channel(len.max(1));
    let overflow = Arc::new(AtomicU64::new(0));
    let lost = Arc::clone(&writer.lost_total);
    (
        AdjustmentLog { queue: sender, overflow: Arc::clone(&overflow), lost },
        LogThread { queue, overflow, writer },
    )
}

impl AdjustmentLog {
    /// Hands an entry over. `false`: the queue was full, and the entry is counted as lost.
    pub fn record(&self, entry: Entry) -> bool {
        match self.queue.try_send(entry) {
            Ok(()) => true,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.overflow.fetch_add(1, Ordering::Relaxed);
                self.lost.fetch_add(1, Ordering::Relaxed);
                false
            }
        }
    }

    /// Events lost since the start, for whatever reason.
    pub fn events_lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

impl LogThread {
    /// Writes until every [`AdjustmentLog`] is dropped, then forces the rest to the disk. Blocks: run
    /// it on a thread of its own.
    pub fn run(mut self) {
        loop {
            match self.queue.recv_timeout(SYNC_EVERY) {
                Ok(entry) => {
                    self.flush_gap(entry.time, entry.at);
                    self.writer.write(entry);
                }
                Err(RecvTimeoutError::Timeout) => self.writer.sync_if_dirty(),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        let (time, at) = self.writer.last;
        self.flush_gap(time, at);
        self.writer.finish();
    }

    /// What did not fit into the queue is owned up to before the next entry.
    fn flush_gap(&mut self, time: WallMs, at: Time) {
        let missed = self.overflow.swap(0, Ordering::Relaxed);
        if missed > 0 {
            self.writer.note_gap(missed, "events came faster than they could be written");
            self.writer.settle_gap(time, at);
        }
    }
}

/// Appends events to the current file.
pub struct Writer {
    options: Options,
    file: Option<Open>,
    seq_next: u64,
    gap: Option<Gap>,
    lost_total: Arc<AtomicU64>,
    retry_at: Time,
    synced_at: Time,
    dirty: bool,
    echo: Option<Box<dyn Write + Send>>,
    line: Vec<u8>,
    last: (WallMs, Time),
}

struct Open {
    file: File,
    bytes: u64,
    inode: (u64, u64),
}

impl Writer {
    /// Opens the adjustment log. A directory that cannot be written is no reason not to start: the
    /// writer then counts what is lost and tries again, and the error is handed back to be said.
    pub fn open(options: Options) -> (Writer, Option<io::Error>) {
        let seq_next = last_seq(&options).map_or(1, |seq| seq + 1);
        let mut writer = Writer {
            options,
            file: None,
            seq_next,
            gap: None,
            lost_total: Arc::new(AtomicU64::new(0)),
            retry_at: Time::ZERO,
            synced_at: Time::ZERO,
            dirty: false,
            echo: None,
            line: Vec::new(),
            last: (WallMs(0), Time::ZERO),
        };
        let problem = writer.reopen().err();
        (writer, problem)
    }

    /// Also writes every line there (standard output in containers). Its failures are its own.
    #[must_use]
    pub fn with_echo(mut self, echo: Box<dyn Write + Send>) -> Writer {
        self.echo = Some(echo);
        self
    }

    /// Writes one entry, or counts it.
    pub fn write(&mut self, entry: Entry) {
        let Entry { time, at, event } = entry;
        self.last = (time, at);
        if self.is_ready(at) && self.settle_gap(time, at) {
            if let Err(problem) = self.append(time, at, event) {
                self.fail(at);
                self.note_gap(1, &problem.to_string());
                self.count(1);
            }
        } else {
            self.note_gap(1, "the adjustment log could not be opened");
            self.count(1);
        }
        self.sync_if_due(at);
    }

    /// Events that are missing: they get their numbers, and a `gap` before the next line.
    /// (Who notes them has counted them.)
    fn note_gap(&mut self, missed: u64, why: &str) {
        self.seq_next += missed;
        match &mut self.gap {
            Some(gap) => gap.lost += missed,
            none => *none = Some(Gap { lost: missed, torn_bytes: 0, why: why.to_owned() }),
        }
    }

    /// Forces what has been written to the disk.
    pub fn sync_if_dirty(&mut self) {
        if let (true, Some(open)) = (self.dirty, &self.file) {
            // What cannot be forced now is tried again at the next turn.
            self.dirty = open.file.sync_data().is_err();
        }
    }

    /// The last words: a gap that is still owed, then everything to the disk.
    pub fn finish(mut self) {
        let (time, at) = self.last;
        if self.gap.is_some() {
            self.retry_at = at;
            if self.is_ready(at) {
                self.settle_gap(time, at);
            }
        }
        self.sync_if_dirty();
    }

    /// The next sequence number.
    pub fn seq_next(&self) -> u64 {
        self.seq_next
    }

    /// Whether the current file is open and still the one of that name.
    fn is_ready(&mut self, at: Time) -> bool {
        if let Some(open) = &self.file {
            let same = fs::metadata(self.path()).is_ok_and(|meta| (meta.dev(), meta.ino()) == open.inode);
            if same {
                return true;
            }
            self.file = None;
        } else if at < self.retry_at {
            return false;
        }
        match self.reopen() {
            Ok(()) => true,
            Err(problem) => {
                self.fail(at);
                self.note_gap(0, &problem.to_string());
                false
            }
        }
    }

    /// Writes the gap that is owed. `false`: it could not be written.
    fn settle_gap(&mut self, time: WallMs, at: Time) -> bool {
        let Some(gap) = self.gap.take() else { return true };
        if self.file.is_none() {
            self.gap = Some(gap);
            return false;
        }
        let written = self.append(time, at, Event::Gap(gap.clone())).is_ok();
        if !written {
            // It keeps the reason it has: the first is the one that matters.
            self.gap = Some(gap);
            self.fail(at);
        }
        written
    }

    fn append(&mut self, time: WallMs, at: Time, event: Event) -> io::Result<()> {
        let logged = LoggedEvent { time, seq: self.seq_next, at, event };
        let mut line = std::mem::take(&mut self.line);
        line.clear();
        let written = serde_json::to_writer(&mut line, &logged).map_err(io::Error::from).and_then(|()| {
            line.push(b'\n');
            self.rotate_if_full(line.len() as u64);
            self.put(&line)
        });
        self.line = line;
        written?;
        self.seq_next += 1;
        Ok(())
    }

    fn put(&mut self, line: &[u8]) -> io::Result<()> {
        let Some(open) = &mut self.file else {
            return Err(io::Error::new(io::ErrorKind::NotConnected, "the adjustment log is not open"));
        };
        if let Err(problem) = open.file.write_all(line) {
            // A full disk takes part of a line. Giving back is possible even then.
            let _ = open.file.set_len(open.bytes);
            return Err(problem);
        }
        open.bytes += line.len() as u64;
        self.dirty = true;
        if let Some(echo) = &mut self.echo {
            // A closed standard output must not cost the adjustment log on disk.
            let _ = echo.write_all(line).and_then(|()| echo.flush());
        }
        Ok(())
    }

    /// Begins the next file. If that fails, the current one goes on.
    fn rotate_if_full(&mut self, more: u64) {
        let full = self.file.as_ref().is_some_and(|open| {
            open.bytes > 0 && open.bytes.saturating_add(more) > self.options.file_bytes_max
        });
        if !full {
            return;
        }
        self.sync_if_dirty();
        let files_max = self.options.files_max.max(1);
        if files_max == 1 {
            let _ = fs::remove_file(self.path());
        } else {
            let _ = fs::remove_file(rotated(&self.path(), files_max - 1));
            for age in (1..files_max - 1).rev() {
                let _ = fs::rename(rotated(&self.path(), age), rotated(&self.path(), age + 1));
            }
            let _ = fs::rename(self.path(), rotated(&self.path(), 1));
        }
        if let Ok(next) = open_append(&self.path()) {
            self.file = Some(next);
        }
    }

    /// Opens the current file, and marks a torn last line.
    fn reopen(&mut self) -> io::Result<()> {
        fs::create_dir_all(&self.options.dir)?;
        let mut open = open_append(&self.path())?;
        let torn = torn_bytes(&self.path(), open.bytes)?;
        if torn > 0 {
            open.file.write_all(b"\n")?;
            open.bytes += 1;
            let why = "the line was cut off when it was written".to_owned();
            match &mut self.gap {
                Some(gap) => gap.torn_bytes += torn,
                none => *none = Some(Gap { lost: 0, torn_bytes: torn, why }),
            }
        }
        self.file = Some(open);
        Ok(())
    }

    fn fail(&mut self, at: Time) {
        self.file = None;
        self.retry_at = at + RETRY_AFTER;
    }

    fn count(&self, missed: u64) {
        self.lost_total.fetch_add(missed, Ordering::Relaxed);
    }

    fn sync_if_due(&mut self, at: Time) {
        if at.since(self.synced_at) >= SYNC_EVERY {
            self.synced_at = at;
            self.sync_if_dirty();
        }
    }

    fn path(&self) -> PathBuf {
        self.options.dir.join(FILE_NAME)
    }
}

fn open_append(path: &Path) -> io::Result<Open> {
    // It names who gave which reason: only the owner may read it.
    let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    let meta = file.metadata()?;
    Ok(Open { file, bytes: meta.len(), inode: (meta.dev(), meta.ino()) })
}

/// `adjustments.jsonl.1`, `.2`, ...: the higher, the older.
fn rotated(path: &Path, age: usize) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{age}"));
    PathBuf::from(name)
}

/// The last `bytes_max` bytes of a file.
fn tail(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(bytes_max)))?;
    let mut bytes = Vec::new();
    file.take(bytes_max).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// How long the last line is if it has no end, looking back a line's length at most.
fn torn_bytes(path: &Path, length: u64) -> io::Result<u64> {
    if length == 0 {
        return Ok(0);
    }
    let bytes = tail(path, LINE_BYTES_MAX as u64)?;
    let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    Ok((bytes.len() - end) as u64)
}

/// The last sequence number in the files there are.
fn last_seq(options: &Options) -> Option<u64> {
    #[derive(serde::Deserialize)]
    struct Numbered {
        seq: u64,
    }
    let current = options.dir.join(FILE_NAME);
    let older = rotated(&current, 1);
    [current, older].iter().find_map(|path| {
        let bytes = tail(path, 2 * LINE_BYTES_MAX as u64).ok()?;
        let numbered = |line| serde_json::from_slice::<Numbered>(line).ok();
        bytes.rsplit(|byte| *byte == b'\n').find_map(numbered).map(|line| line.seq)
    })
}

/// What a line of the adjustment log turned out to be.
#[derive(Clone, PartialEq, Debug)]
pub enum LogLine {
    /// An event.
    LoggedEvent(Box<LoggedEvent>),
    /// Something that cannot be read: torn, or of a later version.
    Unreadable {
        /// In which file.
        file: PathBuf,
        /// Its number there, from 1.
        number: u64,
        /// Its length in bytes.
        bytes: u64,
        /// Why not.
        problem: String,
    },
}

/// Reads an adjustment log from its oldest line to its newest, one line in memory at a time.
pub struct Reader {
    files: std::vec::IntoIter<PathBuf>,
    open: Option<(PathBuf, Box<dyn BufRead + Send>, u64)>,
    line: Vec<u8>,
}

/// The files of the adjustment log at `path`, oldest first; those whose last line is older than `since` are left out.
fn files(path: &Path, since: Option<WallMs>) -> io::Result<Vec<PathBuf>> {
    let current = if path.is_dir() { path.join(FILE_NAME) } else { path.to_path_buf() };
    let mut files: Vec<PathBuf> =
        (1..AGE_MAX).map(|age| rotated(&current, age)).take_while(|file| file.exists()).collect();
    files.reverse();
    if current.exists() || files.is_empty() {
        // A file that is not there is an error to be told, unless it was just rotated.
        File::open(&current)?;
        files.push(current);
    }
    if let Some(since) = since {
        let old = |file: &PathBuf| {
            fs::metadata(file)
                .and_then(|meta| meta.modified())
                .ok()
                .and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok())
                .is_some_and(|at| at.as_millis() < u128::from(since.0))
        };
        files.retain(|file| !old(file));
    }
    Ok(files)
}

/// The newest whole lines of the adjustment log at `path`, oldest first, in at most so many bytes.
pub fn newest_lines(path: &Path, since: Option<WallMs>, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut left = bytes_max;
    let mut parts = Vec::new();
    for file in files(path, since)?.iter().rev() {
        let mut file = match File::open(file) {
            Ok(file) => file,
            // Rotated away while we read.
            Err(gone) if gone.kind() == io::ErrorKind::NotFound => continue,
            Err(problem) => return Err(problem),
        };
        let length = file.metadata()?.len();
        let skipped = length.saturating_sub(left);
        file.seek(SeekFrom::Start(skipped))?;
        let mut part = Vec::new();
        file.take(length - skipped).read_to_end(&mut part)?;
        // It may begin and end within a line.
        let newline = |byte: &u8| *byte == b'\n';
        part.truncate(part.iter().rposition(newline).map_or(0, |at| at + 1));
        if skipped > 0 {
            part.drain(..part.iter().position(newline).map_or(part.len(), |at| at + 1));
        }
        left = left.saturating_sub(length - skipped);
        parts.push(part);
        if skipped > 0 {
            break;
        }
    }
    parts.reverse();
    Ok(parts.concat())
}

impl Reader {
    /// The adjustment log at `path`: its directory, its current file (older ones are read
    /// first), or any single file. Files whose last line is older than `since` are passed over.
    pub fn open(path: &Path, since: Option<WallMs>) -> io::Result<Reader> {
        Ok(Reader::over(files(path, since)?))
    }

    /// Lines that were read elsewhere.
    pub fn of(lines: Vec<u8>) -> Reader {
        let open = (PathBuf::from("the admin API"), Box::new(io::Cursor::new(lines)) as Box<_>, 0);
        Reader { files: Vec::new().into_iter(), open: Some(open), line: Vec::new() }
    }

    /// These files, in this order.
    pub fn over(files: Vec<PathBuf>) -> Reader {
        Reader { files: files.into_iter(), open: None, line: Vec::new() }
    }

    /// Reads one line into `self.line`, `false` at the end of the last file.
    fn next_line(&mut self) -> io::Result<bool> {
        loop {
            let Some((_, file, number)) = &mut self.open else {
                let Some(path) = self.files.next() else { return Ok(false) };
                match File::open(&path) {
                    Ok(file) => self.open = Some((path, Box::new(BufReader::new(file)), 0)),
                    // Rotated away while we read.
                    Err(gone) if gone.kind() == io::ErrorKind::NotFound => {}
                    Err(problem) => return Err(problem),
                }
                continue;
            };
            self.line.clear();
            if read_line(file, &mut self.line)? {
                *number += 1;
                return Ok(true);
            }
            self.open = None;
        }
    }
}

impl Iterator for Reader {
    type Item = io::Result<LogLine>;

    fn next(&mut self) -> Option<io::Result<LogLine>> {
        loop {
            match self.next_line() {
                Ok(true) => {}
                Ok(false) => return None,
                Err(problem) => {
                    self.open = None;
                    return Some(Err(problem));
                }
            }
            let line = self.line.strip_suffix(b"\n").unwrap_or(&self.line);
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let (file, number) =
                self.open.as_ref().map_or_else(Default::default, |(p, _, n)| (p.clone(), *n));
            return Some(Ok(parse(line, file, number)));
        }
    }
}

fn parse(line: &[u8], file: PathBuf, number: u64) -> LogLine {
    match serde_json::from_slice(line) {
        Ok(logged) => LogLine::LoggedEvent(logged),
        Err(problem) => {
            LogLine::Unreadable { file, number, bytes: line.len() as u64, problem: problem.to_string() }
        }
    }
}

/// Reads up to a line break or the end; of a line that is too long only the beginning is kept.
fn read_line(file: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    let mut any = false;
    loop {
        let available = file.fill_buf()?;
        if available.is_empty() {
            return Ok(any);
        }
        any = true;
        let end = available.iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(available.len(), |at| at + 1);
        let room = LINE_BYTES_MAX.saturating_sub(line.len());
        line.extend_from_slice(&available[..taken.min(room)]);
        file.consume(taken);
        if end.is_some() {
            return Ok(true);
        }
    }
}

/// Goes on reading the current file as it grows, across rotations.
#[derive(Debug)]
pub struct Follower {
    path: PathBuf,
    file: Option<(File, u64)>,
    rest: Vec<u8>,
    number: u64,
}

impl Follower {
    /// Begins at the end of the current file.
    pub fn at_end(path: &Path) -> Follower {
        let path = if path.is_dir() { path.join(FILE_NAME) } else { path.to_path_buf() };
        let mut follower = Follower { path, file: None, rest: Vec::new(), number: 0 };
        if let Ok(mut file) = File::open(&follower.path)
            && file.seek(SeekFrom::End(0)).is_ok()
            && let Ok(meta) = file.metadata()
        {
            follower.file = Some((file, meta.ino()));
        }
        follower
    }

    /// The lines that have come since the last call.
    pub fn poll(&mut self) -> io::Result<Vec<LogLine>> {
        let mut lines = Vec::new();
        self.drain(&mut lines)?;
        let current = fs::metadata(&self.path).ok().map(|meta| meta.ino());
        let known = self.file.as_ref().map(|(_, inode)| *inode);
        if current.is_some() && current != known {
            // What the old file got between the drain above and its rotation.
            self.drain(&mut lines)?;
            self.rest.clear();
            self.number = 0;
            let file = File::open(&self.path)?;
            let inode = file.metadata()?.ino();
            self.file = Some((file, inode));
            self.drain(&mut lines)?;
        }
        Ok(lines)
    }

    fn drain(&mut self, lines: &mut Vec<LogLine>) -> io::Result<()> {
        let Some((file, _)) = &mut self.file else { return Ok(()) };
        file.take(64 * LINE_BYTES_MAX as u64).read_to_end(&mut self.rest)?;
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            self.number += 1;
            if line.len() > 1 {
                lines.push(parse(&line[..end], self.path.clone(), self.number));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory of this test's own, removed at its end.
    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Dir {
            let dir =
                std::env::temp_dir().join(format!("rayguard-adjustment-log-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&dir);
            fs::create_dir_all(&dir).unwrap();
            Dir(dir)
        }
        fn options(&self) -> Options {
            Options { dir: self.0.join("adjustment-log"), file_bytes_max: 1 << 20, files_max: 4 }
        }
        fn file(&self) -> PathBuf {
            self.0.join("adjustment-log").join(FILE_NAME)
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn open(options: &Options) -> Writer {
        let (writer, problem) = Writer::open(options.clone());
        assert!(problem.is_none(), "{problem:?}");
        writer
    }

    fn entry(second: u64) -> Entry {
        Entry {
            time: WallMs(1_700_000_000_000 + second * 1_000),
            at: Time(second * 1_000_000_000),
            event: Event::Stop { reason: format!("test {second}") },
        }
    }

    fn lines(dir: &Dir) -> Vec<LogLine> {
        Reader::open(&dir.0.join("adjustment-log"), None).unwrap().map(Result::unwrap).collect()
    }

    fn records(dir: &Dir) -> Vec<LoggedEvent> {
        let logged = |line| match line {
            LogLine::LoggedEvent(logged) => Some(*logged),
            LogLine::Unreadable { .. } => None,
        };
        lines(dir).into_iter().filter_map(logged).collect()
    }

    fn seqs(dir: &Dir) -> Vec<u64> {
        records(dir).iter().map(|logged| logged.seq).collect()
    }

    fn gaps(dir: &Dir) -> Vec<Gap> {
        let gap = |logged: LoggedEvent| if let Event::Gap(gap) = logged.event { Some(gap) } else { None };
        records(dir).into_iter().filter_map(gap).collect()
    }

    #[test]
    fn lines_are_numbered_on_across_restarts() {
        let dir = Dir::new("restart");
        for start in [0, 3] {
            let mut writer = open(&dir.options());
            for second in start..start + 3 {
                writer.write(entry(second));
            }
            writer.finish();
        }
        assert_eq!(seqs(&dir), [1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn its_files_are_their_owners_alone_and_their_newest_lines_are_whole() {
        use std::os::unix::fs::PermissionsExt;
        let dir = Dir::new("private");
        let mut writer = open(&Options { file_bytes_max: 300, ..dir.options() });
        (0..20).for_each(|n| writer.write(entry(n)));
        writer.finish();
        let current = dir.options().dir.join(FILE_NAME);
        for file in [current.clone(), rotated(&current, 1)] {
            assert_eq!(
                fs::metadata(&file).unwrap().permissions().mode() & 0o777,
                0o600,
                "{}",
                file.display()
            );
        }
        let all = newest_lines(&dir.options().dir, None, u64::MAX).unwrap();
        let seqs = |lines: Vec<u8>| -> Vec<u64> {
            Reader::of(lines)
                .map(|line| match line.unwrap() {
                    LogLine::LoggedEvent(logged) => logged.seq,
                    LogLine::Unreadable { problem, .. } => panic!("{problem}"),
                })
                .collect()
        };
        let all_seqs = seqs(all.clone());
        assert!(all_seqs.is_sorted() && all_seqs.last() == Some(&20), "{all_seqs:?}");
        for bytes_max in 0..all.len() as u64 {
            let some = seqs(newest_lines(&dir.options().dir, None, bytes_max).unwrap());
            assert!(all_seqs.ends_with(&some), "{bytes_max}: {some:?}");
        }
    }

    #[test]
    fn files_rotate_by_size_and_the_oldest_goes() {
        let dir = Dir::new("rotate");
        let mut writer = open(&Options { file_bytes_max: 500, ..dir.options() });
        for second in 0..40 {
            writer.write(entry(second));
        }
        let files: Vec<u64> =
            (1..10).map_while(|age| fs::metadata(rotated(&dir.file(), age)).ok()).map(|m| m.len()).collect();
        assert_eq!(files.len(), 3, "{files:?}");
        assert!(files.iter().all(|bytes| *bytes <= 500), "{files:?}");
        let seqs = seqs(&dir);
        assert_eq!(*seqs.last().unwrap(), 40);
        assert!(seqs.windows(2).all(|pair| pair[1] == pair[0] + 1), "{seqs:?}");
    }

    #[test]
    fn a_torn_last_line_is_kept_marked_and_passed_over() {
        let dir = Dir::new("torn");
        let mut writer = open(&dir.options());
        writer.write(entry(0));
        writer.write(entry(1));
        drop(writer);
        let whole = fs::read(dir.file()).unwrap();
        fs::write(dir.file(), &whole[..whole.len() - 10]).unwrap();

        let mut writer = open(&dir.options());
        writer.write(entry(2));
        let lines = lines(&dir);
        assert!(matches!(lines[1], LogLine::Unreadable { number: 2, .. }), "{lines:?}");
        let gap = &gaps(&dir)[0];
        assert!(gap.torn_bytes > 50 && gap.lost == 0, "{gap:?}");
        assert_eq!(*seqs(&dir).last().unwrap(), writer.seq_next() - 1);
    }

    #[test]
    fn a_vanished_directory_is_made_again() {
        let dir = Dir::new("vanished");
        let mut writer = open(&dir.options());
        writer.write(entry(0));
        fs::remove_dir_all(dir.0.join("adjustment-log")).unwrap();
        writer.write(entry(1));
        assert_eq!(seqs(&dir), [2]);
    }

    #[test]
    fn while_it_cannot_write_it_counts_and_then_owns_up() {
        let dir = Dir::new("blocked");
        let mut writer = open(&dir.options());
        let lost = Arc::clone(&writer.lost_total);
        writer.write(entry(0));
        // A file where the directory should be: not even root can write through that.
        fs::remove_dir_all(dir.0.join("adjustment-log")).unwrap();
        fs::write(dir.0.join("adjustment-log"), b"in the way").unwrap();
        for second in 1..6 {
            writer.write(entry(second));
        }
        assert_eq!(lost.load(Ordering::Relaxed), 5);
        fs::remove_file(dir.0.join("adjustment-log")).unwrap();
        writer.write(entry(10));
        let gap = &gaps(&dir)[0];
        assert_eq!(gap.lost, 5);
        assert!(!gap.why.is_empty() && gap.why != "the adjustment log could not be opened", "{gap:?}");
        assert_eq!(seqs(&dir), [7, 8], "lost events keep their numbers");
    }

    #[test]
    fn a_full_disk_is_survived() {
        let full = Path::new("/dev/full");
        if !full.exists() {
            return;
        }
        let dir = Dir::new("full");
        fs::create_dir_all(dir.0.join("adjustment-log")).unwrap();
        std::os::unix::fs::symlink(full, dir.file()).unwrap();
        let (mut writer, _) = Writer::open(dir.options());
        for second in 0..4 {
            writer.write(entry(second));
        }
        fs::remove_file(dir.file()).unwrap();
        writer.write(entry(10));
        let gap = &gaps(&dir)[0];
        assert_eq!(gap.lost, 4);
        assert!(gap.why.contains("No space left"), "{gap:?}");
    }

    #[test]
    fn a_start_without_a_writable_directory_is_said_and_survived() {
        let dir = Dir::new("start");
        fs::write(dir.0.join("adjustment-log"), b"in the way").unwrap();
        let (mut writer, problem) = Writer::open(dir.options());
        assert!(problem.is_some());
        writer.write(entry(0));
        fs::remove_file(dir.0.join("adjustment-log")).unwrap();
        writer.write(entry(5));
        assert_eq!(gaps(&dir)[0].lost, 1);
    }

    #[test]
    fn a_full_queue_never_blocks_and_the_gap_is_recorded() {
        let dir = Dir::new("queue");
        let (adjustment_log, thread) = channel(open(&dir.options()), 2);
        let taken: Vec<bool> = (0..5).map(|second| adjustment_log.record(entry(second))).collect();
        assert_eq!(taken, [true, true, false, false, false]);
        assert_eq!(adjustment_log.events_lost(), 3);
        drop(adjustment_log);
        thread.run();
        assert_eq!(gaps(&dir)[0].lost, 3);
        assert_eq!(records(&dir).len(), 3);
    }

    #[test]
    fn a_follower_sees_lines_across_a_rotation() {
        let dir = Dir::new("follow");
        let mut writer = open(&Options { file_bytes_max: 300, ..dir.options() });
        writer.write(entry(0));
        let mut follower = Follower::at_end(&dir.0.join("adjustment-log"));
        assert!(follower.poll().unwrap().is_empty());
        let mut seen = Vec::new();
        for second in 1..8 {
            writer.write(entry(second));
            for line in follower.poll().unwrap() {
                let LogLine::LoggedEvent(logged) = line else { panic!("{line:?}") };
                seen.push(logged.seq);
            }
        }
        assert_eq!(seen, [2, 3, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn an_endless_line_is_not_read_into_memory() {
        let dir = Dir::new("endless");
        fs::create_dir_all(dir.0.join("adjustment-log")).unwrap();
        let mut bytes = vec![b'x'; 3 * LINE_BYTES_MAX];
        bytes.push(b'\n');
        fs::write(dir.file(), bytes).unwrap();
        let lines = lines(&dir);
        assert!(matches!(lines[..], [LogLine::Unreadable { bytes, .. }] if bytes <= LINE_BYTES_MAX as u64));
    }
}
