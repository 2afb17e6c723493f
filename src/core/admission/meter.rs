//! What the proxy counts: the loop's first and fastest reading, and the source of our metrics.
//!
//! Counters only ever rise and are read without stopping anyone; the loop looks at the
//! difference between two snapshots ([`Counts::since`]), the metrics page at the totals.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// Latency buckets: four to the octave from 64 us up, the last is open. 64 us * 2^(92/4) is
/// about nine minutes; a quantile read from them is at most 19 % high.
pub const BUCKETS: usize = 93;

/// Why a request was refused.
// The order is the metrics' order; labels are public.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The route is blocked by policy.
    Blocked,
    /// The class's rate is used up.
    ClassRate,
    /// The head has as much of this class's work still to begin as it can bear.
    ClassBacklog,
    /// The class has as many under way as it may, and no room to wait.
    ClassInFlight,
    /// The module has as many under way as it can bear, and no room to wait.
    ModuleInFlight,
    /// The client asks for more than its share while others wait.
    #[serde(alias = "party_share")]
    ClientShare,
    /// The client's own configured rate is used up.
    #[serde(alias = "party_rate")]
    ClientRate,
    /// The client's own configured concurrency is used up.
    #[serde(alias = "party_in_flight")]
    ClientInFlight,
    /// It waited as long as it may and no room came.
    QueueTimeout,
    /// Upstream accepts no connections: the circuit breaker is open.
    UpstreamUnreachable,
    /// The class asks for an API key and none, or none we know, was shown.
    ApiKey,
    /// It still waited when the time to finish what was under way was nearly over: the process ends.
    Draining,
}

impl Reason {
    /// All reasons, in order.
    pub const ALL: [Reason; 12] = [
        Reason::Blocked,
        Reason::ClassRate,
        Reason::ClassBacklog,
        Reason::ClassInFlight,
        Reason::ModuleInFlight,
        Reason::ClientShare,
        Reason::ClientRate,
        Reason::ClientInFlight,
        Reason::QueueTimeout,
        Reason::UpstreamUnreachable,
        Reason::ApiKey,
        Reason::Draining,
    ];

    /// The label in metrics, logs and the `X-Rayguard-Reason` header.
    pub fn label(self) -> &'static str {
        match self {
            Reason::Blocked => "blocked",
            Reason::ClassRate => "class_rate",
            Reason::ClassBacklog => "class_backlog",
            Reason::ClassInFlight => "class_in_flight",
            Reason::ModuleInFlight => "module_in_flight",
            Reason::ClientShare => "client_share",
            Reason::ClientRate => "client_rate",
            Reason::ClientInFlight => "client_in_flight",
            Reason::QueueTimeout => "queue_timeout",
            Reason::UpstreamUnreachable => "upstream_unreachable",
            Reason::ApiKey => "api_key",
            Reason::Draining => "draining",
        }
    }

    /// The reason with this label, or with the one it had before clients were called that.
    pub fn named(label: &str) -> Option<Reason> {
        let was = |reason: &Reason| label.strip_prefix("party").zip(reason.label().strip_prefix("client")); // kept: their earlier name
        Reason::ALL
            .into_iter()
            .find(|reason| reason.label() == label || was(reason).is_some_and(|(old, new)| old == new))
    }

    /// Whether Ray could not be reached: then there is no load to shed, and the request has failed.
    pub fn is_failure(self) -> bool {
        self == Reason::UpstreamUnreachable
    }

    /// Whether the client itself is over its share or a configured limit (429), rather than
    /// the head overloaded (503).
    pub fn is_clients_own(self) -> bool {
        matches!(self, Reason::ClientShare | Reason::ClientRate | Reason::ClientInFlight)
    }
}

/// How an admitted exchange ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Upstream answered below 500.
    Served,
    /// Upstream answered 500 or above, broke off or could not be reached.
    Failed,
    /// The client had left before upstream answered.
    Abandoned,
    /// The same, and upstream stopped working on it: what it took says nothing of an answer.
    Cancelled,
    /// It was never sent: its client left between grant and sending.
    Unsent,
    /// It went another way, and nothing told how it ended: it counts as neither answer nor latency.
    Unseen,
}

/// Makes, of one list of counters, the [`Meter`] that counts and the [`Counts`] that were read from it.
macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)*) => {
        /// The counters of one class.
        #[derive(Debug)]
        pub struct Meter {
            $($name: AtomicU64,)*
            shed: [AtomicU64; Reason::ALL.len()],
            buckets: [AtomicU64; BUCKETS],
            in_flight_peak: AtomicU32,
        }

        /// The totals of one class, or the difference of two of them.
        #[derive(Clone, PartialEq, Eq, Debug)]
        pub struct Counts {
            $($(#[doc = $doc])+ pub $name: u64,)*
            /// Refusals by [`Reason`].
            pub shed: [u64; Reason::ALL.len()],
            /// Upstream latencies by bucket.
            pub buckets: [u64; BUCKETS],
        }

        impl Default for Meter {
            fn default() -> Meter {
                Meter {
                    $($name: AtomicU64::new(0),)*
                    shed: std::array::from_fn(|_| AtomicU64::new(0)),
                    buckets: std::array::from_fn(|_| AtomicU64::new(0)),
                    in_flight_peak: AtomicU32::new(0),
                }
            }
        }

        impl Default for Counts {
            fn default() -> Counts {
                Counts { $($name: 0,)* shed: [0; Reason::ALL.len()], buckets: [0; BUCKETS] }
            }
        }

        impl Meter {
            /// Everything counted so far.
            pub fn read(&self) -> Counts {
                let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
                Counts {
                    shed: std::array::from_fn(|reason| load(&self.shed[reason])),
                    buckets: std::array::from_fn(|at| load(&self.buckets[at])),
                    $($name: load(&self.$name),)*
                }
            }
        }

        impl Counts {
            /// What was counted since `earlier`.
            #[must_use]
            pub fn since(&self, earlier: &Counts) -> Counts {
                Counts {
                    $($name: self.$name.saturating_sub(earlier.$name),)*
                    shed: std::array::from_fn(|reason| self.shed[reason].saturating_sub(earlier.shed[reason])),
                    buckets: std::array::from_fn(|at| self.buckets[at].saturating_sub(earlier.buckets[at])),
                }
            }

            /// Adds what another replica has counted.
            pub fn add(&mut self, more: &Counts) {
                $(self.$name += more.$name;)*
                self.shed.iter_mut().zip(&more.shed).for_each(|(sum, more)| *sum += more);
                self.buckets.iter_mut().zip(&more.buckets).for_each(|(sum, more)| *sum += more);
            }
        }
    };
}

counters! {
    // What happens to a request first is read last, so that no part is ever more than the whole.
    /// Requests that waited.
    queued,
    /// Answers below 500.
    served,
    /// Answers of 500 and above, resets, refusals.
    failed,
    /// Requests whose client was told that Ray took too long.
    late,
    /// Answers that no client waited for any more.
    abandoned,
    /// Requests that ended because their client left.
    cancelled,
    /// Of the requests whose client left those that had been under way for longer than they had waited here.
    left_at_head,
    /// For how long these had been, microseconds.
    left_at_head_us,
    /// Clients that left while waiting.
    left,
    /// Refusals not carried out (shadow mode).
    shadow_shed,
    /// Decisions taken while a limit was binding.
    bound,
    /// Sum of upstream latencies, microseconds: from the request being whole to the head of the
    /// answer, whatever the client's line makes of either.
    latency_us,
    /// Sum of waits of those admitted, microseconds.
    wait_us,
    /// Sum of learnt work, microseconds.
    work_us,
    /// Requests sent on.
    admitted,
    /// Requests that arrived.
    offered,
}

impl Meter {
    /// A request arrived.
    pub(crate) fn offer(&self) {
        self.offered.fetch_add(1, Ordering::Relaxed);
    }
    /// It was admitted; Ray is at work on so many, this one among them.
    pub fn admit(&self, asked: u32) {
        self.admitted.fetch_add(1, Ordering::Relaxed);
        self.in_flight_peak.fetch_max(asked, Ordering::Relaxed);
    }
    /// It had to wait for a limit of its class or module: the limit was binding.
    pub fn queue(&self) {
        self.queued.fetch_add(1, Ordering::Relaxed);
        self.bound.fetch_add(1, Ordering::Relaxed);
    }
    /// A waiter was admitted after `wait`.
    pub fn wait(&self, wait: Duration) {
        self.wait_us.fetch_add(micros(wait), Ordering::Relaxed);
    }
    /// It was refused.
    pub fn shed(&self, reason: Reason) {
        self.shed[reason as usize].fetch_add(1, Ordering::Relaxed);
        self.bound.fetch_add(1, Ordering::Relaxed);
    }
    /// It would have been refused, were the class not in shadow mode.
    pub(crate) fn shed_in_shadow(&self) {
        self.shadow_shed.fetch_add(1, Ordering::Relaxed);
        self.bound.fetch_add(1, Ordering::Relaxed);
    }
    /// Its client left while it waited.
    pub fn leave(&self) {
        self.left.fetch_add(1, Ordering::Relaxed);
    }
    /// An admitted exchange ended: upstream took `latency`, of which `work` is its own.
    pub fn finish(&self, outcome: Outcome, latency: Duration, work: Duration) {
        if self.end(outcome, work) {
            self.answer(latency);
        }
    }

    /// Upstream began to answer after `latency`.
    pub fn answer(&self, latency: Duration) {
        self.latency_us.fetch_add(micros(latency), Ordering::Relaxed);
        self.buckets[bucket(latency)].fetch_add(1, Ordering::Relaxed);
    }

    /// An admitted exchange ended, and whether its outcome says something of upstream.
    pub fn end(&self, outcome: Outcome, work: Duration) -> bool {
        let counter = match outcome {
            Outcome::Served => &self.served,
            Outcome::Failed => &self.failed,
            Outcome::Abandoned => &self.abandoned,
            Outcome::Cancelled => {
                self.cancelled.fetch_add(1, Ordering::Relaxed);
                return false;
            }
            Outcome::Unsent => {
                self.left.fetch_add(1, Ordering::Relaxed);
                return false;
            }
            Outcome::Unseen => return false,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        self.work_us.fetch_add(micros(work), Ordering::Relaxed);
        true
    }

    /// The client of an admitted exchange left, which had been under way for so long.
    pub(crate) fn leave_head(&self, under_way: Duration) {
        self.left_at_head.fetch_add(1, Ordering::Relaxed);
        self.left_at_head_us.fetch_add(micros(under_way), Ordering::Relaxed);
    }

    /// The client of an admitted exchange was told that upstream took too long.
    pub fn late(&self) {
        self.late.fetch_add(1, Ordering::Relaxed);
    }

    /// The most that Ray was at work on since the last call; the count starts anew at `asked`.
    pub(crate) fn take_peak(&self, asked: u32) -> u32 {
        self.in_flight_peak.swap(asked, Ordering::Relaxed).max(asked)
    }
}

impl Counts {
    /// Exchanges that ended.
    pub fn finished(&self) -> u64 {
        self.served + self.failed + self.abandoned
    }

    /// The same without those for which there was no head to load; an outage has an alert of its own.
    pub(crate) fn shed_for_load(&self) -> u64 {
        self.shed_all() - self.shed[Reason::UpstreamUnreachable as usize]
    }

    /// Requests that Ray failed: unreachable, 500 and above, too late, broken off.
    pub(crate) fn failed_all(&self) -> u64 {
        self.failed + self.late + self.shed[Reason::UpstreamUnreachable as usize]
    }

    /// Exchanges whose latency is known: their answer has begun, or they ended without one.
    pub fn answers(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// All refusals carried out.
    pub fn shed_all(&self) -> u64 {
        self.shed.iter().sum()
    }

    /// The latency in seconds that the share `quantile` of the exchanges stayed within, read
    /// evenly on log(latency) between the bounds of its bucket; `None` when nothing ended.
    /// (Its bucket's upper bound would move by 19 % or not at all, and a limit with it.)
    pub fn latency_quantile(&self, quantile: f64) -> Option<f64> {
        let count: u64 = self.buckets.iter().sum();
        if count == 0 {
            return None;
        }
        let rank = quantile.clamp(0.0, 1.0) * count as f64;
        let mut below = 0;
        for (at, in_bucket) in self.buckets.iter().enumerate() {
            if *in_bucket > 0 && (below + in_bucket) as f64 >= rank {
                let share = ((rank - below as f64) / *in_bucket as f64).clamp(0.0, 1.0);
                return Some(upper_bound_secs(at) * 2f64.powf((share - 1.0) / 4.0));
            }
            below += in_bucket;
        }
        Some(upper_bound_secs(BUCKETS - 1))
    }

    /// How well that quantile is told by so many exchanges: the standard error of its
    /// logarithm. Of n exchanges the number within the quantile q is binomial, so q itself is
    /// only known to within `+- sqrt(q (1 - q) / n)`; half the way between the latencies at the
    /// ends of that range is the error. Few exchanges may lie close together by chance, so it is
    /// never taken for less than `1 / (2 sqrt(n))`.
    pub(crate) fn latency_noise(&self, quantile: f64) -> Option<f64> {
        let n = self.buckets.iter().sum::<u64>() as f64;
        let error = (quantile * (1.0 - quantile) / n).sqrt();
        let (low, high) =
            (self.latency_quantile(quantile - error)?, self.latency_quantile(quantile + error)?);
        Some(((high / low).ln() / 2.0).max(0.5 / n.sqrt()))
    }

    /// The mean upstream latency in seconds; `None` when nothing was answered.
    pub fn latency_mean(&self) -> Option<f64> {
        let answers = self.answers();
        (answers > 0).then(|| self.latency_us as f64 / 1e6 / answers as f64)
    }
}

/// What the proxy says of itself: one reading per class, in the policy's order.
pub type ProxyReading = Vec<ClassReading>;

/// What the proxy says of one class at one moment.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct ClassReading {
    /// Totals since the start.
    pub counts: Counts,
    /// Under way now.
    pub in_flight: u32,
    /// The most that Ray was at work on since the reading before: an answer that its client reads slowly does not
    /// count.
    pub in_flight_peak: u32,
    /// Waiting now.
    pub waiting: u32,
    /// For how long Ray has been asked without beginning any answer, in seconds: hung exchanges
    /// never show up in latencies. What waits for its client's line does not count.
    pub stalled_s: f64,
}

/// The upper bound of a bucket, in seconds.
pub fn upper_bound_secs(at: usize) -> f64 {
    64e-6 * 2f64.powf(at as f64 / 4.0)
}

fn bucket(latency: Duration) -> usize {
    let lengths = latency.as_nanos() as f64 / 64e3;
    if lengths <= 1.0 {
        return 0;
    }
    // Whole octaves stand in the exponent, and the quarters of the last are told by comparing: a logarithm
    // takes ten times as long.
    let octaves = (lengths.to_bits() - 1.0_f64.to_bits()) >> 52;
    let within = f64::from_bits(lengths.to_bits() - (octaves << 52));
    let quarters = QUARTERS.iter().filter(|quarter| within > **quarter).count();
    usize::try_from(octaves).map_or(BUCKETS - 1, |octaves| (4 * octaves + quarters).min(BUCKETS - 1))
}

/// An octave in quarters: powers of two, of 0, 1/4, 1/2 and 3/4.
const QUARTERS: [f64; 4] = [1.0, 1.189_207_115_002_721, std::f64::consts::SQRT_2, 1.681_792_830_507_429];

fn micros(length: Duration) -> u64 {
    u64::try_from(length.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quantiles_come_from_the_window_alone() {
        let meter = Meter::default();
        (0..1000).for_each(|_| meter.finish(Outcome::Served, Duration::from_millis(500), Duration::ZERO));
        let before = meter.read();
        for ms in 1..=100 {
            meter.finish(Outcome::Served, Duration::from_millis(ms), Duration::ZERO);
        }
        let window = meter.read().since(&before);
        let p50 = window.latency_quantile(0.5).unwrap();
        assert!((0.050..0.060).contains(&p50), "{p50}");
        assert_eq!(before.since(&before).latency_quantile(0.5), None);
    }

    #[test]
    fn a_hundred_times_the_exchanges_tell_a_quantile_ten_times_as_well() {
        let told_by = |n: u64| {
            let meter = Meter::default();
            // Evenly over an exponential distribution of mean 100 ms.
            let latency = |at: u64| -0.1 * (1.0 - (at as f64 + 0.5) / n as f64).ln();
            (0..n).for_each(|at| {
                meter.finish(Outcome::Served, Duration::from_secs_f64(latency(at)), Duration::ZERO);
            });
            let counts = meter.read();
            (counts.latency_quantile(0.95).unwrap(), counts.latency_noise(0.95).unwrap())
        };
        let ((few, noise), (many, less)) = (told_by(100), told_by(10_000));
        assert!((few / 0.2996).ln().abs() < 0.05 && (many / 0.2996).ln().abs() < 0.01, "{few} {many}");
        // Theory: sqrt(q / (n (1 - q))) * 0.1 / 0.2996.
        assert!((0.1..0.2).contains(&noise) && (0.01..0.02).contains(&less), "{noise} {less}");
        assert!(told_by(1).1 >= 0.5, "one exchange tells next to nothing");
    }

    proptest! {
        #[test]
        fn a_bucket_holds_what_lies_within_its_bound(us in 0u64..600_000_000) {
            let at = bucket(Duration::from_micros(us));
            let seconds = us as f64 / 1e6;
            prop_assert!(at == BUCKETS - 1 || seconds <= upper_bound_secs(at) * (1.0 + 1e-9));
            prop_assert!(at == 0 || seconds > upper_bound_secs(at - 1) * (1.0 - 1e-9));
        }
    }
}
