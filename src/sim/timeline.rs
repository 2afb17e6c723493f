//! The course of a run: what is drawn of it and what its limit is judged by, in bounded memory.
//!
//! A run leaves a sample a second, and a day has 86,400 of them. [`POINTS_MAX`] points are kept:
//! while there is room each is a second, and whenever there is none two by two become one, and a
//! point stands for twice as long from then on. A point keeps each figure's peak, because a spike
//! must not vanish from a plot, and of the limit its least and its sum too. No point reaches
//! over a bound of the measured part or over its middle, so what is judged of a part (means,
//! extremes, counts) is exact however long the run; only *when* something was, is told to a point:
//! to a second in runs of an hour, to half a minute in one of a day.
//!
//! How the limit moved ([`Motion`]) is told as it moves and kept as four numbers.

use super::tally::Second;
use rayguard_core::control::oscillation::Oscillation;
use rayguard_core::time::{Time, duration_from_secs};

/// Points kept at most.
pub const POINTS_MAX: usize = 4096;

/// Some seconds on end.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Point {
    /// The end of the last of them, and each figure at its highest.
    pub peak: Second,
    /// How many they are.
    pub seconds: u32,
    /// The least limit.
    pub limit_least: f64,
    /// The limit, summed over the seconds.
    pub limit_sum: f64,
    /// Attempts answered in time, in all of them.
    pub served: u64,
}

impl From<Second> for Point {
    fn from(second: Second) -> Point {
        Point {
            peak: second,
            seconds: 1,
            limit_least: second.limit,
            limit_sum: second.limit,
            served: u64::from(second.served),
        }
    }
}

impl Point {
    fn join(&mut self, later: &Point) {
        self.peak = self.peak.or_higher(&later.peak);
        self.seconds += later.seconds;
        self.limit_least = self.limit_least.min(later.limit_least);
        self.limit_sum += later.limit_sum;
        self.served += later.served;
    }
}

/// The points of a run, in the order of time.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Timeline {
    points: Vec<Point>,
    /// Seconds that a point stands for.
    span: u32,
    /// Seconds at which a point ends whatever its length.
    marks: [f64; 3],
}

impl Timeline {
    /// Nothing yet, of a run that is judged between these two seconds.
    #[must_use]
    pub fn new([from, to]: [f64; 2]) -> Timeline {
        Timeline { points: Vec::new(), span: 1, marks: [from, f64::midpoint(from, to), to] }
    }

    /// What there is.
    #[must_use]
    pub fn points(&self) -> &[Point] {
        &self.points
    }

    /// Takes one more second.
    pub fn push(&mut self, second: Second) {
        let point = Point::from(second);
        match self.points.last_mut() {
            Some(last) if joins(&self.marks, last, &point, self.span) => last.join(&point),
            _ => {
                if self.points.len() >= POINTS_MAX {
                    self.halve();
                }
                self.points.push(point);
            }
        }
    }

    fn halve(&mut self) {
        self.span *= 2;
        let (marks, span) = (self.marks, self.span);
        self.points.dedup_by(|later, earlier| {
            let one = joins(&marks, earlier, later, span);
            if one {
                earlier.join(later);
            }
            one
        });
    }
}

/// Whether two neighbours may be one point.
fn joins(marks: &[f64; 3], earlier: &Point, later: &Point, span: u32) -> bool {
    let (from, to) = (earlier.peak.at_s, later.peak.at_s);
    earlier.seconds + later.seconds <= span && !marks.iter().any(|mark| from <= *mark && *mark < to)
}

/// How the watched limit moved in the measured part.
#[derive(Clone, PartialEq, Debug)]
pub struct Motion {
    measured: [f64; 2],
    last: Option<f64>,
    /// The same, within the measured part.
    before: Option<f64>,
    travel: f64,
    turns: f64,
    extreme: Option<f64>,
    rising: Option<bool>,
    hunting: Oscillation,
}

impl Default for Motion {
    fn default() -> Motion {
        Motion::new([0.0, 0.0])
    }
}

impl Motion {
    /// Nothing has moved, in a run that is judged between these two seconds.
    #[must_use]
    pub fn new([from, to]: [f64; 2]) -> Motion {
        Motion {
            measured: [from, to],
            last: None,
            before: None,
            travel: 0.0,
            turns: 0.0,
            extreme: None,
            rising: None,
            hunting: Oscillation::new(duration_from_secs((to - from) / 4.0)),
        }
    }

    /// The limit as it stands now; to be told whenever it may have moved.
    pub fn tell(&mut self, now: Time, limit: f64) {
        if self.last.is_some_and(|last| (last - limit).abs() <= 1e-9) {
            return;
        }
        self.last = Some(limit);
        if self.is_judged(now) {
            if limit > 0.0 {
                self.travel += self.before.map_or(0.0, |before| (limit / before).ln().abs());
                self.before = Some(limit);
            }
            self.turn(limit);
        }
    }

    /// A second is over.
    pub fn close(&mut self, now: Time, limit: f64) {
        if self.is_judged(now) {
            self.hunting.observe(now, limit);
        }
    }

    fn is_judged(&self, now: Time) -> bool {
        let [from, to] = self.measured;
        let at_s = now.as_secs_f64();
        from < at_s && at_s <= to
    }

    /// Changes of direction of more than 10 % only, so that noise is no turn.
    fn turn(&mut self, limit: f64) {
        let ratio = limit / *self.extreme.get_or_insert(limit);
        match self.rising {
            Some(true) if ratio >= 1.0 => self.extreme = Some(limit),
            Some(false) if ratio <= 1.0 => self.extreme = Some(limit),
            _ if !(0.9..=1.1).contains(&ratio) => {
                self.turns += f64::from(u8::from(self.rising.is_some()));
                self.rising = Some(ratio > 1.0);
                self.extreme = Some(limit);
            }
            _ => {}
        }
    }

    /// The sum of |ln(new / old)| of all moves.
    #[must_use]
    pub(crate) fn travel(&self) -> f64 {
        self.travel
    }

    /// Changes of direction of more than 10 %.
    #[must_use]
    pub fn turns(&self) -> f64 {
        self.turns
    }

    /// 0 for a straight way, 1 for one that leads nowhere.
    #[must_use]
    pub fn oscillation(&self) -> f64 {
        self.hunting.index()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(at_s: u32) -> Second {
        // A limit that climbs, with a spike at one second of the late half.
        let limit = f64::from(at_s) + if at_s == 60_001 { 1e6 } else { 0.0 };
        Second { at_s: f64::from(at_s), limit, served: at_s % 7, ..Second::default() }
    }

    #[test]
    fn a_day_keeps_no_more_points_than_an_hour_and_every_part_of_it_is_told_exactly() {
        let bounds = [61.0, 86_399.0];
        let mut timeline = Timeline::new(bounds);
        (1..=86_400).for_each(|at| timeline.push(second(at)));
        assert!(timeline.points().len() <= POINTS_MAX, "{}", timeline.points().len());
        let middle = f64::midpoint(bounds[0], bounds[1]);
        let part = |from: f64, to: f64| {
            let within = move |at_s: f64| from < at_s && at_s <= to;
            let told = timeline.points().iter().filter(|point| within(point.peak.at_s));
            let told = told.fold((0, 0.0, 0, f64::INFINITY, 0.0_f64), |sum, point| {
                let (count, limit, served, least, most) = sum;
                let (least, most) = (point.limit_least.min(least), point.peak.limit.max(most));
                (count + point.seconds, limit + point.limit_sum, served + point.served, least, most)
            });
            let seen = (1..=86_400).map(second).filter(|second| within(second.at_s));
            let seen = seen.fold((0, 0.0, 0, f64::INFINITY, 0.0_f64), |sum, second| {
                let (count, limit, served, least, most) = sum;
                let (least, most) = (second.limit.min(least), second.limit.max(most));
                (count + 1, limit + second.limit, served + u64::from(second.served), least, most)
            });
            (told, seen)
        };
        for (from, to) in [(0.0, bounds[0]), (bounds[0], middle), (middle, bounds[1]), (bounds[1], 86_400.0)]
        {
            let (told, seen) = part(from, to);
            assert_eq!(told, seen, "{from} to {to} s");
        }
    }

    #[test]
    fn an_hour_is_told_second_by_second() {
        let mut timeline = Timeline::new([0.0, 3600.0]);
        (1..=3600).for_each(|at| timeline.push(second(at)));
        assert!(timeline.points().iter().zip(1..).all(|(point, at)| point.peak == second(at)));
        assert_eq!(timeline.points().len(), 3600);
    }

    #[test]
    fn only_turns_of_a_tenth_and_more_count_and_only_in_the_measured_part() {
        let told = |limits: &[f64], from: f64| {
            let mut motion = Motion::new([from, 100.0]);
            for (at, limit) in (1_u32..).zip(limits) {
                motion.tell(Time::from_secs_f64(f64::from(at)), *limit);
            }
            motion
        };
        let swing = [10.0, 12.0, 10.0, 12.0, 12.5, 12.0, 10.0];
        assert_eq!(told(&swing, 0.0).turns().to_bits(), 3.0_f64.to_bits());
        assert_eq!(told(&swing, 50.0), Motion { last: Some(10.0), ..Motion::new([50.0, 100.0]) });
        assert!((told(&[10.0, 20.0, 10.0], 0.0).travel() - 2.0 * 2.0_f64.ln()).abs() < 1e-12);
    }
}
