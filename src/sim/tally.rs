//! What is counted of a run: per group of clients, and per second.

use super::plant::Felt;
use hdrhistogram::Histogram;
use rayguard_core::time::duration_from_secs;
use std::fmt::Write as _;
use std::time::Duration;

/// How an attempt ended for its client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// An answer, in time.
    Served,
    /// Refused at the proxy, to come back after so many seconds.
    Shed {
        /// As the proxy said.
        retry_after_s: u32,
    },
    /// The client gave up.
    TimedOut,
    /// Upstream failed, or the connection broke.
    Failed,
}

/// One group of clients over the measured part of a run.
#[derive(Clone, PartialEq, Debug)]
pub struct GroupTally {
    /// The group's name.
    pub name: String,
    /// Whether it keeps within its share.
    pub polite: bool,
    /// Requests, further attempts not counted.
    pub demands: u64,
    /// Attempts.
    pub attempts: u64,
    /// Demands answered in time, at whatever attempt.
    pub served: u64,
    /// Attempts refused.
    pub shed: u64,
    /// Attempts given up.
    pub timed_out: u64,
    /// Attempts that failed.
    pub failed: u64,
    /// Attempts refused although something less urgent had been let into the same module since
    /// they came.
    pub inverted: u64,
    /// Attempts that had to wait at the proxy.
    pub waited: u64,
    /// Time its requests spent at the head, all together, seconds.
    pub busy_s: f64,
    /// Submissions whose job started, and whose job is done.
    pub jobs_begun: u64,
    /// See above.
    pub jobs_done: u64,
    /// From a submission's first attempt until its job started, and until it was done, milliseconds.
    start: Histogram<u64>,
    done: Histogram<u64>,
    /// Latency of attempts served, microseconds.
    latency: Histogram<u64>,
    /// The same in the calm part of the run.
    calm: Histogram<u64>,
    /// Latency of the head's side of everything admitted, given-up ones included, microseconds.
    upstream: Histogram<u64>,
    /// Per address: demands, served; in the order of addresses.
    clients: Vec<(u64, (u64, u64))>,
}

/// Clients told apart; more are one.
const CLIENTS_MAX: usize = 4096;

/// Three significant digits, up to an hour.
pub(super) fn histogram() -> Histogram<u64> {
    // invariant: 1..=3.6e9 with 3 digits is a valid range for the crate.
    #[expect(clippy::unwrap_used, reason = "constant arguments that the crate accepts")]
    Histogram::new_with_bounds(1, 3_600_000_000, 3).unwrap()
}

fn micros(length: Duration) -> u64 {
    u64::try_from(length.as_micros()).unwrap_or(u64::MAX)
}

fn millis(length: Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap_or(u64::MAX)
}

/// What the cluster's own work felt of the head.
#[derive(Clone, PartialEq, Debug)]
pub struct FeltTally {
    /// What its calls to the GCS took, microseconds.
    gcs: Histogram<u64>,
    /// How late the raylet was, microseconds.
    raylet: Histogram<u64>,
}

impl Default for FeltTally {
    fn default() -> FeltTally {
        FeltTally { gcs: histogram(), raylet: histogram() }
    }
}

impl FeltTally {
    /// One moment.
    pub fn note(&mut self, felt: Felt) {
        let micros = |ms: f64| micros(duration_from_secs(ms / 1e3));
        self.gcs.saturating_record(micros(felt.gcs_ms));
        self.raylet.saturating_record(micros(felt.raylet_ms));
    }

    /// What a call to the GCS took, milliseconds.
    #[must_use]
    pub(crate) fn gcs_ms(&self, quantile: f64) -> f64 {
        quantile_ms(&self.gcs, quantile)
    }

    /// How late the raylet was, milliseconds.
    #[must_use]
    pub(crate) fn raylet_ms(&self, quantile: f64) -> f64 {
        quantile_ms(&self.raylet, quantile)
    }
}

impl GroupTally {
    /// Nothing counted yet.
    #[must_use]
    pub fn new(name: &str, polite: bool) -> GroupTally {
        GroupTally {
            name: name.to_owned(),
            polite,
            demands: 0,
            attempts: 0,
            served: 0,
            shed: 0,
            timed_out: 0,
            failed: 0,
            inverted: 0,
            waited: 0,
            busy_s: 0.0,
            jobs_begun: 0,
            jobs_done: 0,
            start: histogram(),
            done: histogram(),
            latency: histogram(),
            calm: histogram(),
            upstream: histogram(),
            clients: Vec::new(),
        }
    }

    /// An attempt begins.
    pub fn attempt(&mut self, first: bool, address: u64) {
        self.attempts += 1;
        if first {
            self.demands += 1;
            self.client(address).0 += 1;
        }
    }

    fn client(&mut self, address: u64) -> &mut (u64, u64) {
        let find = |address: u64| self.clients.binary_search_by_key(&address, |client| client.0);
        // Clients for which there is no room any more are counted together, as client 0.
        let (address, found) = match find(address) {
            Err(_) if self.clients.len() >= CLIENTS_MAX => (0, find(0)),
            found => (address, found),
        };
        let at = found.unwrap_or_else(|at| {
            self.clients.insert(at, (address, (0, 0)));
            at
        });
        &mut self.clients[at].1
    }

    /// A demand was still under way when the run ended.
    pub(crate) fn withdraw(&mut self, address: u64) {
        self.attempts -= 1;
        self.demands -= 1;
        self.client(address).0 -= 1;
    }

    /// An attempt ended.
    pub fn end(&mut self, ending: Ending, latency: Duration, address: u64) {
        match ending {
            Ending::Served => {
                self.served += 1;
                self.latency.saturating_record(micros(latency));
                self.client(address).1 += 1;
            }
            Ending::Shed { .. } => self.shed += 1,
            Ending::TimedOut => self.timed_out += 1,
            Ending::Failed => self.failed += 1,
        }
    }

    /// An attempt of the calm part was served.
    pub fn calm(&mut self, latency: Duration) {
        self.calm.saturating_record(micros(latency));
    }

    /// The head finished one of the group's requests.
    pub fn upstream(&mut self, latency: Duration) {
        self.busy_s += latency.as_secs_f64();
        self.upstream.saturating_record(micros(latency));
    }

    /// The job of a submission has started, so long after it was first sent.
    pub fn begun(&mut self, after: Duration) {
        self.jobs_begun += 1;
        self.start.saturating_record(millis(after));
    }

    /// The job of a submission is done, so long after it was first sent.
    pub fn done(&mut self, after: Duration) {
        self.jobs_done += 1;
        self.done.saturating_record(millis(after));
    }

    /// From a submission until its job has started, seconds.
    #[must_use]
    pub(crate) fn start_s(&self, quantile: f64) -> f64 {
        // The histograms of jobs count milliseconds.
        quantile_ms(&self.start, quantile)
    }

    /// From a submission until its job is done, seconds.
    #[must_use]
    pub(crate) fn done_s(&self, quantile: f64) -> f64 {
        quantile_ms(&self.done, quantile)
    }

    /// Latency quantile of what was served, milliseconds; NaN when nothing was.
    #[must_use]
    pub fn latency_ms(&self, quantile: f64) -> f64 {
        quantile_ms(&self.latency, quantile)
    }

    /// Latency quantile of what was served in the calm part, milliseconds; NaN when nothing was.
    #[must_use]
    pub fn calm_ms(&self, quantile: f64) -> f64 {
        quantile_ms(&self.calm, quantile)
    }

    /// Latency quantile at the head, milliseconds, those whose client gave up included.
    #[must_use]
    pub(crate) fn upstream_ms(&self, quantile: f64) -> f64 {
        quantile_ms(&self.upstream, quantile)
    }

    /// Adds this group's latencies of what was served to `all`.
    pub(crate) fn add_latencies(&self, all: &mut Histogram<u64>) {
        // Both have the same bounds.
        let _ = all.add(&self.latency);
    }

    /// Jain's index of the served shares of the group's addresses: 1 is even, 1/n is all to one.
    #[must_use]
    pub fn jain(&self) -> f64 {
        jain(
            self.clients
                .iter()
                .filter(|(_, (sent, _))| *sent > 0)
                .map(|(_, (sent, served))| *served as f64 / *sent as f64),
        )
    }
}

pub(super) fn quantile_ms(histogram: &Histogram<u64>, quantile: f64) -> f64 {
    if histogram.is_empty() { f64::NAN } else { histogram.value_at_quantile(quantile) as f64 / 1e3 }
}

/// Jain's fairness index (1984): (sum x)^2 / (n sum x^2).
#[must_use]
pub fn jain(shares: impl Iterator<Item = f64>) -> f64 {
    let (n, sum, squares) = shares.fold((0.0, 0.0, 0.0), |(n, s, q), x| (n + 1.0, s + x, q + x * x));
    if squares == 0.0 { f64::NAN } else { sum * sum / (n * squares) }
}

/// One second of a run.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Second {
    /// Its end.
    pub at_s: f64,
    /// Attempts sent.
    pub offered: u32,
    /// Attempts answered in time.
    pub served: u32,
    /// Attempts refused.
    pub shed: u32,
    /// Attempts given up or failed.
    pub lost: u32,
    /// Requests the head finished, for whomever.
    pub finished: u32,
    /// The watched class's limit.
    pub limit: f64,
    /// The watched class under way.
    pub in_flight: u32,
    /// The watched class waiting.
    pub waiting: u32,
    /// The pressure on the watched class: the worst of its latency and its signals over their
    /// targets; 0 while nothing is known.
    pub pressure: f64,
    /// Latency of what was served, 99 %, milliseconds; 0 when nothing was.
    pub latency_ms: f64,
    /// As Ray exports it.
    pub node_cpu_pct: f64,
    /// Jobs accepted that have not started.
    pub backlog: usize,
}

impl Second {
    /// An attempt ended in it.
    pub fn note(&mut self, ending: Ending) {
        match ending {
            Ending::Served => self.served += 1,
            Ending::Shed { .. } => self.shed += 1,
            Ending::TimedOut | Ending::Failed => self.lost += 1,
        }
    }

    /// This one and a later one as one: each figure at its highest.
    #[must_use]
    pub(crate) fn or_higher(&self, later: &Second) -> Second {
        Second {
            at_s: later.at_s,
            offered: self.offered.max(later.offered),
            served: self.served.max(later.served),
            shed: self.shed.max(later.shed),
            lost: self.lost.max(later.lost),
            finished: self.finished.max(later.finished),
            limit: self.limit.max(later.limit),
            in_flight: self.in_flight.max(later.in_flight),
            waiting: self.waiting.max(later.waiting),
            pressure: self.pressure.max(later.pressure),
            latency_ms: self.latency_ms.max(later.latency_ms),
            node_cpu_pct: self.node_cpu_pct.max(later.node_cpu_pct),
            backlog: self.backlog.max(later.backlog),
        }
    }

    /// Its line of the adjustment log.
    #[must_use]
    pub fn line(&self) -> String {
        let mut line = String::with_capacity(160);
        // Writing to a String cannot fail.
        let _ = writeln!(
            line,
            "{{\"event\":\"second\",\"at_s\":{:?},\"offered\":{},\"served\":{},\"shed\":{},\"lost\":{},\
             \"finished\":{},\"limit\":{:?},\"in_flight\":{},\"waiting\":{},\"backlog\":{}}}",
            self.at_s,
            self.offered,
            self.served,
            self.shed,
            self.lost,
            self.finished,
            self.limit,
            self.in_flight,
            self.waiting,
            self.backlog
        );
        line
    }
}

/// Latencies of one second, eight buckets to the octave from 64 us up: a plot shows no more.
#[derive(Clone, PartialEq, Debug)]
pub struct Latencies {
    buckets: [u32; Latencies::BUCKETS],
    count: u32,
}

impl Default for Latencies {
    fn default() -> Latencies {
        Latencies { buckets: [0; Latencies::BUCKETS], count: 0 }
    }
}

impl Latencies {
    const BUCKETS: usize = 200;

    /// One more.
    pub fn record(&mut self, latency: Duration) {
        // The bits of a float order as the float does: its exponent and three bits of what follows
        // are a logarithm that costs a shift.
        let (bits, least) = ((latency.as_secs_f64().to_bits()) >> 49, 64e-6_f64.to_bits() >> 49);
        let at = usize::try_from(bits.saturating_sub(least)).unwrap_or(0).min(Latencies::BUCKETS - 1);
        self.buckets[at] += 1;
        self.count += 1;
    }

    /// What 99 % stayed within, milliseconds, and begins anew; 0 when there was none.
    pub(crate) fn take_p99_ms(&mut self) -> f64 {
        if self.count == 0 {
            return 0.0;
        }
        let beyond = self.count / 100;
        let mut above = 0;
        let worst = self.buckets.iter().rposition(|count| {
            above += count;
            above > beyond
        });
        *self = Latencies::default();
        let upper = (64e-6_f64.to_bits() >> 49) + worst.unwrap_or(0) as u64 + 1;
        1e3 * f64::from_bits(upper << 49)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jain_is_one_when_even_and_a_share_when_one_has_all() {
        assert!((jain([0.5, 0.5, 0.5, 0.5].into_iter()) - 1.0).abs() < 1e-12);
        assert!((jain([1.0, 0.0, 0.0, 0.0].into_iter()) - 0.25).abs() < 1e-12);
    }

    #[test]
    fn a_demand_served_at_the_third_attempt_is_one_demand() {
        let mut tally = GroupTally::new("a", true);
        for attempt in 1..=3 {
            tally.attempt(attempt == 1, 7);
            let ending = if attempt == 3 { Ending::Served } else { Ending::TimedOut };
            tally.end(ending, Duration::from_millis(5), 7);
        }
        assert_eq!((tally.demands, tally.attempts, tally.served, tally.timed_out), (1, 3, 1, 2));
    }

    #[test]
    fn a_second_s_tail_is_told_to_an_eighth_of_an_octave() {
        let mut latencies = Latencies::default();
        for ms in [1_u64, 40, 2_000, 100_000] {
            (0..990).for_each(|_| latencies.record(Duration::from_micros(100)));
            (0..10).for_each(|_| latencies.record(Duration::from_secs(1000)));
            latencies.record(Duration::from_millis(ms));
            let p99 = latencies.take_p99_ms();
            assert!((ms as f64..=1.13 * ms as f64).contains(&p99), "{ms} ms are told as {p99}");
        }
        assert!(latencies.take_p99_ms().abs() < 1e-12, "each second begins anew");
    }
}
