//! Which class does a request belong to?
//!
//! The path is read as Ray reads it (see [`path`]) and looked up, most specific first: the
//! operator's routes, then Ray's own ([`ROUTES`]), then the class for what no route knows. A
//! path with dot segments has two readings, and belongs where the costlier one does.
//!
//! Ray's routes are radix trees per method, as its router is in effect: a method that a
//! path does not have is a 404 or 405 from the parent loop, hence `other`. Trailing slashes
//! count, since they count to Ray. Methods are compared without case, because aiohttp's
//! Python parser raises them; `HEAD` is `GET` without a body, and costs the same.
//!
//! The operator's routes are few and may carry a header condition, which a tree cannot step
//! back from. They are a list in order of specificity: a literal segment before a parameter
//! before `{*rest}`, from the left; then with a header condition before without; then a
//! named method before any. Two rules that take the very same requests are an error; rules
//! that merely overlap in part stand in the operator's order.
//!
//! On the [`Serve`](Surface::Serve) surface the paths are the users' own.
//!
//! [`path`]: crate::request::path

use crate::policy::{ClassId, Policy, Treatment};
use crate::request::catalogue::{PREFLIGHT, ROUTES, Surface};
use crate::request::facts::{Facts, Headers};
use crate::request::path::{decode, normalise};
use crate::request::route_tree::{RouteTree, Segment};
use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

/// A route's number: a key for what routes of one class do not share, such as their cost.
/// Ray's own routes have the same number on every surface and in every configuration.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RouteId(pub u16);

impl RouteId {
    /// The number of the route at this place of [`ROUTES`].
    pub fn of_ray(place: usize) -> RouteId {
        RouteId(u16::try_from(Surface::ALL.len() + place).unwrap_or(u16::MAX))
    }

    /// The number as an index, below [`Classifier::route_count`].
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// Where a request belongs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Match {
    /// Its class.
    pub class: ClassId,
    /// Its route within the class.
    pub route: RouteId,
}

/// A route of the operator's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rule {
    /// The listener it holds for.
    pub surface: Surface,
    /// The method, `None` for any; `GET` stands for `HEAD` too.
    pub method: Option<Arc<str>>,
    /// `/like/{this}/{*rest}`, in normal form. `{name}` is one segment that is not empty,
    /// `{*name}` all that follows, be it nothing.
    pub path: Arc<str>,
    /// A header that must be there too.
    pub header: Option<HeaderIs>,
    /// The class's name.
    pub class: Arc<str>,
}

/// A condition on a header's first value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HeaderIs {
    /// The header's name in lower case.
    pub name: Arc<str>,
    /// Its value to the letter; `None`: any.
    pub value: Option<Arc<str>>,
}

/// What is wrong with a rule.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Problem {
    /// The class does not exist.
    #[error("route `{path}` names class `{class}`, which does not exist; define it or choose another")]
    UnknownClass {
        /// The route's path.
        path: Arc<str>,
        /// The class's name.
        class: Arc<str>,
    },
    /// The path is one that no request has.
    #[error("route `{path}` can never match: {why}")]
    Unreachable {
        /// The route's path.
        path: Arc<str>,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The path is not in normal form.
    #[error("route `{path}` can never match, since paths are compared in normal form; write `{normal}`")]
    NotNormal {
        /// The route's path.
        path: Arc<str>,
        /// How to write it.
        normal: Arc<str>,
    },
    /// Braces that are neither `{name}` nor `{*name}` at the end.
    #[error(
        "route `{path}` has segment `{segment}`; write `{{name}}` for one whole segment, `{{*name}}` at the end for the rest"
    )]
    BadSegment {
        /// The route's path.
        path: Arc<str>,
        /// The segment.
        segment: Arc<str>,
    },
    /// The method is not a token.
    #[error("route `{path}` has method `{method}`; write one such as `GET`, or leave it out for any")]
    BadMethod {
        /// The route's path.
        path: Arc<str>,
        /// The method.
        method: Arc<str>,
    },
    /// The header's name cannot be looked up.
    #[error("route `{path}` has header `{name}`; write its name in lower case, letters, digits and `-`")]
    BadHeader {
        /// The route's path.
        path: Arc<str>,
        /// The header's name.
        name: Arc<str>,
    },
    /// Another rule takes the same requests.
    #[error(
        "route `{path}` takes the same requests as route {first} (counted from 0); remove one, or distinguish them by method or header"
    )]
    Duplicate {
        /// The route's path.
        path: Arc<str>,
        /// The place of the other rule.
        first: usize,
    },
    /// More rules than route numbers.
    #[error("{count} routes; at most {RULES_MAX} fit, join them with `{{name}}` and `{{*rest}}`")]
    TooMany {
        /// How many there are.
        count: usize,
    },
}

/// A problem and the place of its rule; `None` when it concerns all, or Ray's own routes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RouteError {
    /// The rule's place in the list given.
    pub rule: Option<usize>,
    /// What is wrong.
    pub problem: Problem,
}

impl fmt::Display for RouteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.problem.fmt(f)
    }
}

/// The most routes an operator may add: each is a label of metrics.
pub(crate) const RULES_MAX: usize = 256;

/// The label of requests that no route knows.
pub const UNLISTED: &str = "(unlisted)";

/// From facts to class and route, for one kind of listener.
pub struct Classifier {
    /// One pair of trees per method of [`METHODS`].
    trees: [Trees; METHODS.len()],
    /// The operator's routes and those of Ray's with a header condition, most specific first.
    rules: Vec<Pattern>,
    /// The same as trees: the operator's, which come first, and Ray's.
    rule_trees: [RouteTree; 2],
    /// Where goes what no route knows.
    unlisted: Match,
    surface: Surface,
    /// Where goes a browser's question whether a page may call, before any other route.
    preflight: Option<Match>,
    /// Classes without limits, by [`ClassId`].
    exempt: Box<[bool]>,
    /// By [`RouteId`].
    labels: Box<[Arc<str>]>,
    /// A route of each class that has any, by [`ClassId`].
    examples: Box<[Option<RouteId>]>,
}

/// The routes of one method. Literal ones apart from those with parameters: the literal goes
/// first anyhow, and a tree that holds both allocates where it may have to step back.
#[derive(Default)]
struct Trees {
    literal: Option<matchit::Router<Match>>,
    parametric: Option<matchit::Router<Match>>,
}

impl Trees {
    /// Adds a route of Ray's. They do not contradict each other: a test finds them all.
    fn insert(&mut self, path: &str, target: Match) {
        let tree = if path.contains('{') { &mut self.parametric } else { &mut self.literal };
        let _ = tree.get_or_insert_default().insert(path, target);
    }

    fn find(&self, path: &str) -> Option<Match> {
        let trees = [&self.literal, &self.parametric].into_iter().flatten();
        trees.map(|tree| tree.at(path)).find_map(Result::ok).map(|found| *found.value)
    }
}

/// The methods Ray's routes use.
const METHODS: [&str; 4] = ["GET", "POST", "PUT", "DELETE"];

impl Classifier {
    /// A classifier for one surface. Pass the rules of all surfaces to each, so that route
    /// numbers agree between them.
    ///
    /// # Errors
    /// All that is wrong with the rules, and the classes that Ray's routes need and the
    /// policy lacks.
    pub fn new(policy: &Policy, surface: Surface, rules: &[Rule]) -> Result<Classifier, Vec<RouteError>> {
        let mut faults = Vec::new();
        if rules.len() > RULES_MAX {
            faults.push(RouteError { rule: None, problem: Problem::TooMany { count: rules.len() } });
            return Err(faults);
        }
        let class_id = |name: &str| policy.classes.iter().position(|class| &*class.name == name);
        let resolve = |name: &str, path: &str| match class_id(name).map(u8::try_from) {
            Some(Ok(place)) => Ok(ClassId(place)),
            _ => Err(Problem::UnknownClass { path: path.into(), class: name.into() }),
        };

        let mut labels: Vec<Arc<str>> = vec![UNLISTED.into(); Surface::ALL.len()];
        let mut examples = vec![None; policy.classes.len()];
        let (mut patterns, mut preflight) = (Vec::new(), None);
        let mut trees: [Trees; METHODS.len()] = Default::default();
        for route in ROUTES {
            let id = next_id(&labels);
            debug_assert_eq!(id, RouteId::of_ray(labels.len() - Surface::ALL.len()));
            labels.push(route.path.into());
            let resolved = resolve(route.class, route.path);
            if let Ok(class) = &resolved {
                examples[class.index()].get_or_insert(id);
            }
            match resolved {
                Err(problem) => faults.push(RouteError { rule: None, problem }),
                Ok(_) if route.surface != surface => {}
                Ok(class) => {
                    let target = Match { class, route: id };
                    let tree = METHODS.iter().position(|method| *method == route.method);
                    match (route.header, tree) {
                        (Some((PREFLIGHT, _)), _) => preflight = Some(target),
                        (None, Some(tree)) => trees[tree].insert(route.path, target),
                        _ => patterns.push(Pattern::of_ray(route, target)),
                    }
                }
            }
        }
        let first_rule = patterns.len();
        for (place, rule) in rules.iter().enumerate() {
            let id = next_id(&labels);
            labels.push(rule.path.clone());
            let made = resolve(&rule.class, &rule.path).and_then(|class| {
                examples[class.index()].get_or_insert(id);
                Pattern::of_operator(rule, place, Match { class, route: id })
            });
            match made {
                Err(problem) => faults.push(RouteError { rule: Some(place), problem }),
                Ok(pattern) => match patterns[first_rule..].iter().find(|other| other.equals(&pattern)) {
                    Some(other) => faults.push(RouteError {
                        rule: Some(place),
                        problem: Problem::Duplicate { path: rule.path.clone(), first: other.place },
                    }),
                    None => patterns.push(pattern),
                },
            }
        }
        patterns.retain(|pattern| pattern.surface == surface);
        patterns.sort_by(Pattern::compare);
        let mut rule_trees = [RouteTree::default(), RouteTree::default()];
        for (place, pattern) in patterns.iter().enumerate() {
            rule_trees[usize::from(pattern.is_rays())].insert(&pattern.segments, place);
        }
        let unlisted = resolve(surface.unlisted_class(), UNLISTED);
        match unlisted {
            Ok(class) if faults.is_empty() => Ok(Classifier {
                trees,
                surface,
                preflight,
                exempt: policy.classes.iter().map(|class| class.treatment == Treatment::Exempt).collect(),
                rules: patterns,
                rule_trees,
                unlisted: Match { class, route: unlisted_id(surface) },
                labels: labels.into(),
                examples: examples.into(),
            }),
            Ok(_) => Err(faults),
            Err(problem) => {
                faults.push(RouteError { rule: None, problem });
                Err(faults)
            }
        }
    }

    /// Where a request belongs.
    #[inline]
    pub fn classify(&self, facts: &Facts) -> Match {
        if self.surface == Surface::Serve {
            let preflight = self.preflight.filter(|_| is_preflight(facts));
            return preflight.unwrap_or_else(|| self.find(facts, &decode(facts.path)));
        }
        let normal = normalise(facts.path);
        let found = self.find(facts, &normal.path);
        match normal.resolved {
            None => found,
            Some(resolved) => self.costlier(found, self.find(facts, &resolved)),
        }
    }

    fn find(&self, facts: &Facts, path: &str) -> Match {
        let mut segments = path.split('/');
        segments.next();
        let holds = |place: usize| self.rules[place].holds(facts);
        let found = self.rule_trees.iter().find_map(|tree| tree.find(segments.clone(), &holds));
        if let Some(place) = found {
            return self.rules[place].target;
        }
        let Some(tree) = tree_of(facts.method) else { return self.unlisted };
        self.trees[tree].find(path).unwrap_or(self.unlisted)
    }

    /// The dashboard goes by the path as it stands, the module behind it by the path without dot
    /// segments: whatever work there is, the module does it.
    fn costlier(&self, stands: Match, resolved: Match) -> Match {
        let has_limits = !self.exempt[resolved.class.index()];
        if has_limits && resolved.route != self.unlisted.route { resolved } else { stands }
    }

    /// Where goes what no route knows.
    pub fn unlisted(&self) -> Match {
        self.unlisted
    }

    /// A class's first route, for a request that tells its class and not its path; what no route
    /// leads to counts as unlisted.
    pub fn example(&self, class: ClassId) -> Match {
        let route = self.examples.get(class.index()).copied().flatten().unwrap_or(self.unlisted.route);
        Match { class, route }
    }

    /// A route's pattern, for logs and metrics: as many values as routes, whatever is asked.
    pub fn label(&self, route: RouteId) -> &Arc<str> {
        &self.labels[route.index()]
    }

    /// How many routes there are: the size of a table indexed by [`RouteId`].
    pub fn route_count(&self) -> usize {
        self.labels.len()
    }
}

impl fmt::Debug for Classifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Classifier").field("routes", &self.labels.len()).finish_non_exhaustive()
    }
}

/// The number that the next label gets. The catalogue and [`RULES_MAX`] keep it in range.
fn next_id(labels: &[Arc<str>]) -> RouteId {
    RouteId(u16::try_from(labels.len()).unwrap_or(u16::MAX))
}

/// The first numbers are those of unlisted requests, by surface.
fn unlisted_id(surface: Surface) -> RouteId {
    match surface {
        Surface::Dashboard => RouteId(0),
        Surface::RayClient => RouteId(1),
        Surface::Serve => RouteId(2),
    }
}

/// Whether a browser asks if a page of another origin may call (the Fetch standard, 3.2.2).
fn is_preflight(facts: &Facts) -> bool {
    facts.method == "OPTIONS"
        && facts.headers.get("origin").is_some()
        && facts.headers.get(PREFLIGHT).is_some()
}

/// The tree of a method's routes.
fn tree_of(method: &str) -> Option<usize> {
    match method {
        "GET" | "HEAD" => Some(0),
        "POST" => Some(1),
        "PUT" => Some(2),
        "DELETE" => Some(3),
        _ if method.eq_ignore_ascii_case("HEAD") => Some(0),
        _ => METHODS.iter().position(|known| known.eq_ignore_ascii_case(method)),
    }
}

/// A rule made ready to be compared.
struct Pattern {
    surface: Surface,
    method: Option<Arc<str>>,
    header: Option<HeaderIs>,
    segments: Box<[Segment]>,
    target: Match,
    /// The rule's place in the operator's list.
    place: usize,
}

impl Pattern {
    /// One of Ray's own, which are well formed.
    fn of_ray(route: &crate::request::catalogue::Route, target: Match) -> Pattern {
        Pattern {
            surface: route.surface,
            method: Some(route.method.into()),
            header: route
                .header
                .map(|(name, value)| HeaderIs { name: name.into(), value: Some(value.into()) }),
            segments: segments_of(route.path).unwrap_or_default(),
            target,
            place: usize::MAX,
        }
    }

    fn of_operator(rule: &Rule, place: usize, target: Match) -> Result<Pattern, Problem> {
        let path = || rule.path.clone();
        if let Some(why) = unreachable(rule) {
            return Err(Problem::Unreachable { path: path(), why });
        }
        let normal = match rule.surface {
            Surface::Serve => decode(&rule.path),
            _ => normalise(&rule.path).path,
        };
        if let Cow::Owned(normal) = normal {
            return Err(Problem::NotNormal { path: path(), normal: normal.into() });
        }
        let segments = segments_of(&rule.path)
            .map_err(|segment| Problem::BadSegment { path: path(), segment: segment.into() })?;
        if let Some(method) = &rule.method
            && !is_token(method)
        {
            return Err(Problem::BadMethod { path: path(), method: method.clone() });
        }
        if let Some(header) = &rule.header
            && (!is_token(&header.name) || header.name.bytes().any(|byte| byte.is_ascii_uppercase()))
        {
            return Err(Problem::BadHeader { path: path(), name: header.name.clone() });
        }
        Ok(Pattern {
            surface: rule.surface,
            method: rule.method.as_ref().map(|method| method.to_ascii_uppercase().into()),
            header: rule.header.clone(),
            segments,
            target,
            place,
        })
    }

    /// Whether it takes a request whose path it takes.
    fn holds(&self, facts: &Facts) -> bool {
        self.method.as_deref().is_none_or(|method| same_method(method, facts.method))
            && self.header.as_ref().is_none_or(|header| header.holds(facts.headers))
    }

    /// Whether both take the same requests with equal right.
    fn equals(&self, other: &Pattern) -> bool {
        self.surface == other.surface
            && self.segments == other.segments
            && self.method == other.method
            && self.header == other.header
    }

    fn is_rays(&self) -> bool {
        self.place == usize::MAX
    }

    /// The more specific first; the operator's order among equals; Ray's own last.
    fn compare(&self, other: &Pattern) -> Ordering {
        self.is_rays()
            .cmp(&other.is_rays())
            .then_with(|| {
                self.segments.iter().map(Segment::rank).cmp(other.segments.iter().map(Segment::rank))
            })
            .then_with(|| self.header.is_none().cmp(&other.header.is_none()))
            .then_with(|| {
                self.header
                    .as_ref()
                    .map(|h| h.value.is_none())
                    .cmp(&other.header.as_ref().map(|h| h.value.is_none()))
            })
            .then_with(|| self.method.is_none().cmp(&other.method.is_none()))
            .then_with(|| self.place.cmp(&other.place))
    }
}

impl Segment {
    fn rank(&self) -> u8 {
        match self {
            Segment::Literal(_) => 0,
            Segment::Parameter => 1,
            Segment::Rest => 2,
        }
    }
}

impl HeaderIs {
    fn holds(&self, headers: &dyn Headers) -> bool {
        match (headers.get(&self.name), &self.value) {
            (Some(found), Some(value)) => found == value.as_bytes(),
            (Some(_), None) => true,
            (None, _) => false,
        }
    }
}

/// A route's method covers a request's.
fn same_method(route: &str, sent: &str) -> bool {
    route.eq_ignore_ascii_case(sent) || (route == "GET" && sent.eq_ignore_ascii_case("HEAD"))
}

/// Why no request has this path.
fn unreachable(rule: &Rule) -> Option<&'static str> {
    if !rule.path.starts_with('/') {
        Some("it does not begin with `/`")
    } else if rule.path.contains(['?', '#']) {
        Some("`?` and `#` end a path; escape them")
    } else if rule.surface != Surface::Serve && normalise(&rule.path).resolved.is_some() {
        Some("it has a `.` or `..` segment; write it resolved")
    } else {
        None
    }
}

/// A pattern's segments, or the one that is none.
fn segments_of(path: &str) -> Result<Box<[Segment]>, &str> {
    let mut pieces = path.split('/').skip(1).peekable();
    let mut segments = Vec::new();
    while let Some(piece) = pieces.next() {
        let inner = piece.strip_prefix('{').and_then(|piece| piece.strip_suffix('}'));
        segments.push(match inner.map(|name| (name.strip_prefix('*'), name)) {
            None if piece.contains(['{', '}']) => return Err(piece),
            None => Segment::Literal(piece.into()),
            Some((Some(name), _)) if is_name(name) && pieces.peek().is_none() => Segment::Rest,
            Some((None, name)) if is_name(name) => Segment::Parameter,
            Some(_) => return Err(piece),
        });
    }
    Ok(segments.into())
}

/// A parameter's name.
fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
}

/// A token of HTTP.
fn is_token(token: &str) -> bool {
    !token.is_empty()
        && token.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Treatment;
    use crate::request::catalogue::{CLASSES, policy};
    use crate::request::facts::Lines;
    use proptest::prelude::*;
    use std::net::{IpAddr, Ipv4Addr};

    fn classifier(surface: Surface, rules: &[Rule]) -> Classifier {
        Classifier::new(&policy(), surface, rules).unwrap()
    }

    fn facts<'a>(method: &'a str, path: &'a str, headers: &'a Lines) -> Facts<'a> {
        let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
        Facts { method, path, query: "", address, headers, upgrade: false, grpc: false }
    }

    /// Class and label of a request.
    fn place(classifier: &Classifier, method: &str, path: &str) -> (String, String) {
        let found = classifier.classify(&facts(method, path, &Lines::default()));
        let class = CLASSES[found.class.index()].name.to_owned();
        (class, classifier.label(found.route).to_string())
    }
    fn class_of(classifier: &Classifier, method: &str, path: &str) -> String {
        place(classifier, method, path).0
    }

    fn rule(method: Option<&str>, path: &str, class: &str) -> Rule {
        Rule {
            surface: Surface::Dashboard,
            method: method.map(Into::into),
            path: path.into(),
            header: None,
            class: class.into(),
        }
    }

    fn with_header(rule: Rule, name: &str, value: Option<&str>) -> Rule {
        Rule { header: Some(HeaderIs { name: name.into(), value: value.map(Into::into) }), ..rule }
    }

    /// Ray's own route table: method, path, module.
    fn rays_routes() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
        include_str!("../../../tests/fixtures/ray/routes.txt").lines().map(|line| {
            let mut words = line.split_whitespace();
            let (method, path, _) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
            let module = match words.next().unwrap().rsplit('/').next().unwrap() {
                // These two are loaded into the parent process, not started as their own.
                "http_server_head.py" | "platform_event_head.py" | "usage_stats_head.py" => "Dashboard",
                "data_head.py" => "DataHead",
                "event_head.py" => "EventHead",
                "job_head.py" => "JobHead",
                "metrics_head.py" => "MetricsHead",
                "node_head.py" => "NodeHead",
                "reporter_head.py" => "ReportHead",
                "serve_head.py" => "ServeHead",
                "state_head.py" => "StateHead",
                "task_events_head.py" => "TaskEventsHead",
                "train_head.py" => "TrainHead",
                "job_agent.py" | "healthz_agent.py" => "JobAgent",
                file => panic!("no module is known for {file}"),
            };
            (method, path, module)
        })
    }

    #[test]
    fn every_route_of_ray_is_known_and_lands_on_its_module() {
        let classifier = classifier(Surface::Dashboard, &[]);
        let mut count = 0;
        for (method, pattern, module) in rays_routes() {
            let sample = pattern.replace('{', "x").replace('}', "y");
            let (class, label) = place(&classifier, method, &sample);
            assert_eq!(label, pattern, "{method} {pattern} is not in the catalogue");
            let route = ROUTES.iter().find(|route| route.method == method && route.path == pattern).unwrap();
            assert_eq!(route.module, module, "{method} {pattern}");
            let class = CLASSES.iter().find(|known| known.name == class).unwrap();
            assert!(class.module == module || class.treatment != Treatment::Limited, "{method} {pattern}");
            assert_ne!(class.name, "other", "{method} {pattern}");
            count += 1;
        }
        assert_eq!(count, 74, "the fixture is whole");
    }

    #[test]
    fn the_routes_that_decide_an_overload_are_where_they_belong() {
        let classifier = classifier(Surface::Dashboard, &[]);
        for (method, path, class) in [
            ("POST", "/api/jobs/", "job-submit"),
            ("POST", "/api/jobs/raysubmit_1/stop", "job-control"),
            ("DELETE", "/api/jobs/raysubmit_1", "job-control"),
            ("GET", "/api/jobs/raysubmit_1", "job-status"),
            ("HEAD", "/api/jobs/raysubmit_1", "job-status"),
            ("GET", "/api/jobs/", "job-list"),
            ("GET", "/api/jobs/raysubmit_1/logs", "job-logs"),
            ("GET", "/api/jobs/raysubmit_1/logs/tail", "log-tail"),
            ("PUT", "/api/packages/gcs/_ray_pkg_0123.zip", "packages"),
            ("GET", "/api/packages/gcs/_ray_pkg_0123.zip", "job-status"),
            ("GET", "/api/v0/tasks", "state-heavy"),
            ("GET", "/api/v0/tasks/summarize", "state-heavy"),
            ("GET", "/api/v0/actors", "state-light"),
            ("GET", "/api/v0/logs/file", "state-logs"),
            ("GET", "/api/v0/logs/stream", "log-stream"),
            ("GET", "/api/version", "health"),
            ("GET", "/api/gcs_healthz", "health"),
            ("GET", "/static/js/main.js", "health"),
            ("GET", "/", "health"),
            ("GET", "/api/v0/delay/5", "blocked"),
            ("HEAD", "/api/v0/delay/5", "blocked"),
            ("HEAD", "/api/v0/logs/file", "blocked"),
            ("head", "/api/v0/logs/stream", "blocked"),
            ("HEAD", "/api/v0/logs", "state-logs"),
            ("GET", "/test/dump", "blocked"),
            ("GET", "/memory_profile", "profiling"),
            ("POST", "/report_events", "reports"),
            ("PATCH", "/api/jobs/", "other"),
            ("GET", "/api/jobs", "other"),
            ("GET", "/no/such/thing", "other"),
        ] {
            assert_eq!(class_of(&classifier, method, path), class, "{method} {path}");
        }
    }

    /// The recorded answers of Ray's two routers to paths that try to be something else.
    /// Columns: method, path, route found by the parent, route found by the module, ours.
    #[test]
    fn no_path_reaches_an_endpoint_under_another_endpoints_class() {
        let classifier = classifier(Surface::Dashboard, &[]);
        let class_of_route = |method: &str, pattern: &str| match pattern {
            "404" | "405" => None,
            // A form, not a route: the static files' directory.
            "/static" => Some("health"),
            // One route to Ray, two to us, told apart by the segment itself.
            "/api/v0/logs/{media_type}" => Some("logs"),
            _ => ROUTES.iter().find(|r| r.method == method && r.path == pattern).map(|r| r.class),
        };
        let mut tricks = 0;
        for line in
            include_str!("../../../tests/fixtures/ray/dodges.tsv").lines().filter(|l| !l.starts_with('#'))
        {
            let [method, path, parent, module, expected] = line.split('\t').collect::<Vec<_>>()[..] else {
                panic!("five columns: {line:?}");
            };
            tricks += 1;
            let (class, label) = place(&classifier, method, path);
            assert_eq!(label, expected, "{method} {path:?}");
            // The module does the work, if there is one; what it does not know costs the dashboard little.
            let ray = class_of_route(method, module).or_else(|| class_of_route(method, parent));
            let same = ray.is_none_or(|ray| {
                class == ray
                    || (ray == "logs" && ["state-logs", "log-stream"].contains(&&*class))
                    || (ray == "health"
                        && !classifier.exempt
                            [classifier.classify(&facts(method, path, &Lines::default())).class.index()])
            });
            assert!(same, "{method} {path:?} is {ray:?} to Ray and {class} to us");
        }
        assert!(tricks >= 80, "{tricks}");
    }

    #[test]
    fn ray_client_newcomers_sessions_and_calls_are_told_apart() {
        let classifier = classifier(Surface::RayClient, &[]);
        let class = |path: &str, headers: &Lines| {
            CLASSES[classifier.classify(&facts("POST", path, headers)).class.index()].name
        };
        let none = Lines::default();
        let resumed = Lines(vec![("reconnecting", b"True".to_vec())]);
        let fresh = Lines(vec![("reconnecting", b"False".to_vec())]);
        assert_eq!(class("/ray.rpc.RayletDriver/ClusterInfo", &none), "ray-client");
        assert_eq!(class("/ray.rpc.RayletDriver/Schedule", &none), "ray-client-call");
        assert_eq!(class("/ray.rpc.RayletDataStreamer/Datapath", &none), "ray-client-session");
        assert_eq!(class("/ray.rpc.RayletDataStreamer/Datapath", &fresh), "ray-client-session");
        assert_eq!(class("/ray.rpc.RayletDataStreamer/Datapath", &resumed), "ray-client-resume");
        assert_eq!(class("/ray.rpc.RayletLogStreamer/Logstream", &none), "ray-client-logs");
        assert_eq!(class("/grpc.health.v1.Health/Check", &none), "ray-client");
        assert_eq!(class("/api/version", &none), "ray-client", "the dashboard's exemptions end at its port");
    }

    #[test]
    fn on_serve_every_path_is_the_users_own() {
        let plain = classifier(Surface::Serve, &[]);
        for path in ["/", "/api/version", "/static/x", "/a/../b", "/%", "/a%00b"] {
            assert_eq!(class_of(&plain, "GET", path), "serve", "{path}");
        }
        assert_eq!(class_of(&plain, "GET", "/-/healthz"), "health");

        let costly = Rule { surface: Surface::Serve, ..rule(Some("POST"), "/llm/{*rest}", "state-heavy") };
        let ruled = classifier(Surface::Serve, &[costly]);
        assert_eq!(class_of(&ruled, "POST", "/llm/v1/chat"), "state-heavy");
        for (path, class) in [
            ("/llm%2Fv1%2Fchat", "state-heavy"),
            ("/%6Clm/v1/ch%5Cat", "state-heavy"),
            ("/x/../llm/v1/chat", "serve"),
            ("//llm/v1/chat", "state-heavy"),
            ("/%", "serve"),
            ("/a%00%FCb/..", "serve"),
        ] {
            assert_eq!(class_of(&ruled, "POST", path), class, "{path}: as Serve or the application reads it");
        }
    }

    #[test]
    fn a_preflight_is_one_whatever_it_asks_for_and_nothing_else_is() {
        let llm = Rule { surface: Surface::Serve, ..rule(None, "/llm/{*rest}", "state-heavy") };
        let serve = classifier(Surface::Serve, &[llm]);
        let class = |method: &str, names: &[&'static str]| {
            let headers = Lines(names.iter().map(|name| (*name, b"x".to_vec())).collect());
            CLASSES[serve.classify(&facts(method, "/llm/v1", &headers)).class.index()].name
        };
        assert_eq!(class("OPTIONS", &["origin", PREFLIGHT]), "serve-preflight");
        assert_eq!(class("OPTIONS", &["origin"]), "state-heavy");
        assert_eq!(class("OPTIONS", &[PREFLIGHT]), "state-heavy");
        assert_eq!(class("POST", &["origin", PREFLIGHT]), "state-heavy");
        let dashboard = classifier(Surface::Dashboard, &[]);
        let headers = Lines(vec![("origin", b"x".to_vec()), (PREFLIGHT, b"GET".to_vec())]);
        assert_eq!(
            CLASSES[dashboard.classify(&facts("OPTIONS", "/x", &headers)).class.index()].name,
            "other"
        );
    }

    #[test]
    fn the_operators_routes_come_first_and_the_most_specific_of_them_wins() {
        let rules = [
            rule(None, "/api/v0/{*rest}", "views"),
            rule(Some("GET"), "/api/v0/tasks", "profiling"),
            rule(None, "/api/v0/{what}", "state-light"),
            with_header(rule(None, "/api/v0/tasks", "job-control"), "x-team", Some("sre")),
            with_header(rule(None, "/api/v0/tasks", "job-status"), "x-team", None),
            rule(Some("GET"), "/api/jobs/{id}/logs", "packages"),
        ];
        let classifier = classifier(Surface::Dashboard, &rules);
        let class = |method: &str, path: &str, headers: &Lines| {
            let found = classifier.classify(&facts(method, path, headers));
            (CLASSES[found.class.index()].name, classifier.label(found.route).to_string())
        };
        let none = Lines::default();
        let sre = Lines(vec![("x-team", b"sre".to_vec())]);
        let web = Lines(vec![("x-team", b"web".to_vec())]);
        assert_eq!(class("GET", "/api/v0/tasks", &none).0, "profiling");
        assert_eq!(class("HEAD", "/api/v0/tasks", &none).0, "profiling");
        assert_eq!(class("GET", "/api/v0/tasks", &sre).0, "job-control");
        assert_eq!(class("GET", "/api/v0/tasks", &web).0, "job-status");
        assert_eq!(class("POST", "/api/v0/tasks", &none).0, "state-light", "the next that fits");
        assert_eq!(class("GET", "/api/v0/tasks/summarize", &none), ("views", "/api/v0/{*rest}".to_owned()));
        assert_eq!(class("GET", "/api/v0/", &none).0, "views", "the rest may be nothing");
        assert_eq!(class("GET", "/api/jobs/x/logs", &none).0, "packages");
        assert_eq!(class("GET", "/api/jobs/x", &none).0, "job-status", "Ray's own routes stand behind");
        assert_eq!(class("GET", "/%61pi/v0/%74asks", &none).0, "profiling");
    }

    #[test]
    fn all_that_is_wrong_with_the_rules_is_told_at_once() {
        let rules = [
            rule(None, "/fine/{x}", "views"),
            rule(None, "/fine/{y}", "other"),
            rule(None, "/x", "no-such-class"),
            rule(None, "/a//b", "views"),
            rule(None, "/a/../b", "views"),
            rule(None, "no-slash", "views"),
            rule(None, "/a/{x}.json", "views"),
            rule(None, "/a/{*x}/b", "views"),
            rule(None, "/a/{}", "views"),
            rule(Some("GE T"), "/b", "views"),
            with_header(rule(None, "/c", "views"), "X-Team", None),
            rule(Some("GET"), "/fine/{x}", "views"),
            with_header(rule(None, "/fine/{x}", "views"), "x-team", None),
        ];
        let faults = Classifier::new(&policy(), Surface::Dashboard, &rules).unwrap_err();
        let places: Vec<_> = faults.iter().map(|fault| fault.rule.unwrap()).collect();
        assert_eq!(places, (1..=10).collect::<Vec<_>>(), "{faults:?}");
        let said: Vec<_> = faults.iter().map(ToString::to_string).collect();
        assert!(said[0].contains("same requests as route 0"), "{}", said[0]);
        assert!(said[1].contains("no-such-class"), "{}", said[1]);
        assert!(said[2].contains("write `/a/b`"), "{}", said[2]);
        assert!(said[5].contains("{x}.json"), "{}", said[5]);
    }

    #[test]
    fn a_policy_that_lacks_rays_classes_is_an_error() {
        let mut bare = policy();
        bare.classes.clear();
        let faults = Classifier::new(&bare, Surface::Dashboard, &[]).unwrap_err();
        assert!(faults.iter().all(|fault| fault.rule.is_none()) && faults.len() >= ROUTES.len());
    }

    #[test]
    fn route_numbers_agree_between_surfaces_and_have_a_label_each() {
        let rules =
            [rule(None, "/x", "views"), Rule { surface: Surface::Serve, ..rule(None, "/y", "views") }];
        let [dashboard, client, serve] = Surface::ALL.map(|surface| classifier(surface, &rules));
        assert_eq!(dashboard.route_count(), 3 + ROUTES.len() + 2);
        for other in [client, serve] {
            assert_eq!(dashboard.labels, other.labels);
        }
    }

    #[test]
    fn too_many_rules_are_refused() {
        let rules: Vec<_> = (0..=RULES_MAX).map(|i| rule(None, &format!("/x{i}"), "views")).collect();
        let faults = Classifier::new(&policy(), Surface::Dashboard, &rules).unwrap_err();
        assert_eq!(faults[0].problem, Problem::TooMany { count: RULES_MAX + 1 });
        classifier(Surface::Dashboard, &rules[1..]);
    }

    /// Whether a pattern takes a path, segment by segment.
    fn takes_path(segments: &[Segment], path: &str) -> bool {
        let mut rest = path.split('/').skip(1);
        for segment in segments {
            match (segment, rest.next()) {
                (Segment::Rest, Some(_)) => return true,
                (Segment::Literal(literal), Some(found)) if **literal == *found => {}
                (Segment::Parameter, Some(found)) if !found.is_empty() => {}
                _ => return false,
            }
        }
        rest.next().is_none()
    }

    /// A path of Ray's with some of its letters escaped, slashes doubled or pieces strewn in.
    fn disguised() -> impl Strategy<Value = String> {
        let piece = prop::sample::select(vec![
            "", "", "", "/", "%2f", "%2e", "..", ";", "%61", "%00", "%25", "x", "%",
        ]);
        let route = prop::sample::select(ROUTES.iter().map(|route| route.path).collect::<Vec<_>>());
        (route, prop::collection::vec((piece, any::<bool>()), 80)).prop_map(|(route, noise)| {
            let mut path = String::new();
            for (letter, (piece, escape)) in route.chars().zip(noise) {
                if escape && letter != '/' {
                    path.extend(format!("%{:02X}", letter as u32).chars());
                } else {
                    path.push(letter);
                }
                if path.len().is_multiple_of(7) {
                    path.push_str(piece);
                }
            }
            path
        })
    }

    proptest! {
        #[test]
        fn a_path_and_its_normal_form_have_the_same_class(path in disguised(), method in "GET|POST|HEAD|get") {
            for surface in Surface::ALL {
                let classifier = classifier(surface, &[]);
                let normal = normalise(&path);
                if surface != Surface::Serve {
                    prop_assert_eq!(place(&classifier, &method, &path), place(&classifier, &method, &normal.path));
                }
            }
        }

        #[test]
        fn a_rule_takes_what_its_pattern_says_and_nothing_else(
            pieces in prop::collection::vec("[a-z]{1,5}|\\{[a-z]{1,3}\\}", 1..5),
            rest in any::<bool>(),
            filler in "[a-z0-9%2F;._-]{0,3}[a-z]",
            deeper in "(/[a-z]{0,3}){0,3}",
        ) {
            let pattern = format!("/{}{}", pieces.join("/"), if rest { "/{*rest}" } else { "" });
            let classifier = classifier(Surface::Dashboard, &[rule(None, &pattern, "profiling")]);
            let filled: Vec<_> =
                pieces.iter().map(|piece| if piece.starts_with('{') { filler.clone() } else { piece.clone() }).collect();
            let path = format!("/{}{}", filled.join("/"), deeper);
            let (class, label) = place(&classifier, "GET", &path);
            let merged = normalise(&path).path.into_owned();
            let takes = if rest { merged.split('/').count() > pieces.len() + 1 } else { merged.split('/').count() == pieces.len() + 1 };
            prop_assert_eq!(label == pattern, takes, "{} {}", pattern, path);
            prop_assert_eq!(class == "profiling", takes);
        }

        #[test]
        fn of_many_rules_the_first_in_order_of_precedence_takes_a_request(
            patterns in prop::collection::btree_set("(/(a|b|\\{x\\})){1,3}(/\\{\\*r\\})?", 1..40),
            methods in prop::collection::vec(prop::sample::select(vec![None, Some("GET"), Some("POST")]), 40),
            path in "(/(a|b|c|)){1,4}",
        ) {
            let rules: Vec<_> =
                patterns.iter().zip(&methods).map(|(path, method)| rule(*method, path, "views")).collect();
            let classifier = classifier(Surface::Serve, &[]);
            let serve = rules.iter().map(|rule| Rule { surface: Surface::Serve, ..rule.clone() });
            let many = self::classifier(Surface::Serve, &serve.collect::<Vec<_>>());
            let path = decode(&path).into_owned();
            let facts = Facts { method: "GET", path: &path, query: "", address: [127, 0, 0, 1].into(),
                headers: &Lines::default(), upgrade: false, grpc: false };
            let first = many.rules.iter().find(|rule| rule.holds(&facts) && takes_path(&rule.segments, &path));
            let expected = first.map_or(classifier.unlisted().class, |rule| rule.target.class);
            let found = many.classify(&facts);
            prop_assert_eq!(found.class, expected);
            prop_assert_eq!(first.map(|rule| rule.target.route), first.map(|_| found.route));
        }

        #[test]
        fn no_request_makes_it_panic(method in "\\PC{0,8}", path in "\\PC{0,40}") {
            for surface in Surface::ALL {
                let _ = place(&classifier(surface, &[]), &method, &path);
            }
        }
    }
}
