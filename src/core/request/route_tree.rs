//! The operator's routes as a tree of segments: a look-up costs what the path is long, not what the routes are many.
//!
//! At each segment the literal goes first, then a parameter, then what takes all the rest: the order in which
//! routes take precedence, so the first that is found and holds is the right one. Two routes may have one path (of two
//! methods, or under conditions), which the router of the built-in routes (`matchit`) refuses.

use std::collections::BTreeMap;
use std::str::Split;

/// A piece of a pattern between slashes, in order of precedence.
#[derive(PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Segment {
    Literal(Box<str>),
    Parameter,
    Rest,
}

/// Routes, by their places in a list that is sorted by precedence.
#[derive(Default)]
pub(super) struct RouteTree {
    literal: BTreeMap<Box<str>, RouteTree>,
    parameter: Option<Box<RouteTree>>,
    /// Those that take all that follows, be it one empty segment.
    rest: Vec<usize>,
    /// Those that end here.
    end: Vec<usize>,
}

impl RouteTree {
    /// Adds a route. Those of equal segments are tried in the order in which they were added.
    pub(super) fn insert(&mut self, segments: &[Segment], place: usize) {
        match segments {
            [] => self.end.push(place),
            [Segment::Rest, ..] => self.rest.push(place),
            [Segment::Literal(literal), after @ ..] => {
                self.literal.entry(literal.clone()).or_default().insert(after, place);
            }
            [Segment::Parameter, after @ ..] => self.parameter.get_or_insert_default().insert(after, place),
        }
    }

    /// The first route for these segments of which this holds as well.
    pub(super) fn find(
        &self,
        mut segments: Split<'_, char>,
        holds: &impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let first = |places: &[usize]| places.iter().copied().find(|place| holds(*place));
        let Some(segment) = segments.next() else { return first(&self.end) };
        let literal = self.literal.get(segment);
        let parameter = self.parameter.as_deref().filter(|_| !segment.is_empty());
        let below = |tree: &RouteTree| tree.find(segments.clone(), holds);
        literal.and_then(below).or_else(|| parameter.and_then(below)).or_else(|| first(&self.rest))
    }
}
