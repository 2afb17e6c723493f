//! The app: proxy and controller at work together.
//!
//! The controller decides and the app carries out: a new table goes into force at the proxy, an
//! event into the adjustment log, an alert to its receivers. One mutex holds the controller; it is
//! taken a few times a second, by the tick, by fresh readings and by the operator, and never by
//! a request.

use crate::core::admission::table::LimitTable;
use crate::core::alert;
use crate::core::controller::overrides::{Override, OverrideError};
use crate::core::controller::view::View;
use crate::core::controller::{Controller, Effects, LastGood, ProxyReading, read_proxy};
use crate::core::event::{ConfigChange, Event, Shed as ShedEvent, SignalHealth};
use crate::core::policy::{ClassId, Policy, SignalId};
use crate::core::replicas::quota::Quota;
use crate::core::request::catalogue::Surface;
use crate::core::request::classify::{Classifier, RouteError};
use crate::core::request::identify::Identifier;
use crate::core::request::profile::Profile;
use crate::core::signal::reading::{Missing, Reading};
use crate::core::signal::series::SignalReader;
use crate::core::time::{Time, WallMs};
use crate::observe::adjustment_log::{AdjustmentLog, Entry};
use crate::observe::tally::EventCounts;
use crate::observe::trace_writer;
use crate::proxy::clock::Clock;
use crate::proxy::h1_connection::AnswerBounds;
use crate::proxy::routing::Routing;
use crate::proxy::state::{ListenerState, ProxyState, ShedNote};
use crate::proxy::tasks::Tasks;
use crate::proxy::trace::{Note, TraceSender};
use crate::proxy::upstream::{Address, Options, Protocol, Upstream};
use crate::runtime::ray_identity::{RayIdentity, RayView, Seen};
use crate::runtime::recent::Recent;
use arc_swap::ArcSwap;
use parking_lot::{Mutex, MutexGuard};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::mpsc;

use crate::config::Settings;

/// How often the loop looks at the proxy.
pub const TICK: Duration = Duration::from_millis(100);

/// How often the proxy looks for waiters whose cell has come.
const PUMP: Duration = Duration::from_millis(20);

/// How often idle connections to Ray are looked at.
const SWEEP: Duration = Duration::from_secs(5);

/// Where the app sends what happens.
#[derive(Clone, Debug)]
pub struct Outlets {
    /// To the adjustment log.
    pub adjustment_log: AdjustmentLog,
    /// To the receivers of alerts.
    pub alerts: mpsc::Sender<alert::Transition>,
}

/// Proxy and controller at work together.
#[derive(Debug)]
pub struct App {
    /// Those at the start: of some sections what it still runs by.
    started: Arc<Settings>,
    /// Sections of the configuration on disk that a restart awaits.
    awaits_restart: Mutex<Vec<&'static str>>,
    settings: ArcSwap<Settings>,
    proxy: ArcSwap<ProxyState>,
    /// One for each listener.
    states: Mutex<Vec<Arc<ArcSwap<ListenerState>>>>,
    /// The key of all digests of identities.
    key: Mutex<[u64; 2]>,
    /// Time.
    pub clock: Clock,
    /// Tasks.
    pub tasks: Tasks,
    controller: Mutex<Controller>,
    outlets: Outlets,
    recent: Mutex<Recent>,
    /// The second of the last refusal that was written down, and how many were in it.
    tally: Mutex<EventCounts>,
    rays_token: OnceLock<Token>,
    /// Whether it is known what the handlers of the Ray at `upstream` read of a query.
    reads_are_known: Arc<AtomicBool>,
    /// What is known of that Ray.
    ray: ArcSwap<Seen>,
    /// The Ray whose routes cost what has been learnt, once it is known.
    costs_of: Mutex<Option<RayIdentity>>,
    /// This proxy's part of the limits, where several replicas share them.
    quota: Mutex<Option<Quota>>,
    /// What the latest watch has read, and the settings that it reads by.
    reader: Mutex<Option<(Arc<Settings>, SharedReader)>>,
}

/// A reader that the tasks of one watch share.
pub type SharedReader = Arc<Mutex<SignalReader>>;

/// Ray's token, which nothing may show.
struct Token(String);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

#[cfg(test)]
impl App {
    /// One whose adjustment log is in `dir`, and whose alerts are not read.
    pub(crate) fn of_test(settings: Settings, dir: &std::path::Path, tasks: Tasks) -> Arc<App> {
        use crate::observe::adjustment_log;
        let options = adjustment_log::Options {
            dir: dir.join("adjustment-log"),
            file_bytes_max: 1 << 20,
            files_max: 2,
        };
        let (adjustment_log, _thread) = adjustment_log::channel(adjustment_log::Writer::open(options).0, 16);
        let outlets = Outlets { adjustment_log, alerts: mpsc::channel(16).0 };
        App::new(Arc::new(settings), &[], [1, 2], Clock::start(), tasks, outlets)
    }
}

impl App {
    /// A guard by these settings; limits start from `last_good` where it knows them.
    pub fn new(
        settings: Arc<Settings>,
        last_good: &[LastGood],
        key: [u64; 2],
        clock: Clock,
        tasks: Tasks,
        outlets: Outlets,
    ) -> Arc<App> {
        let now = clock.now();
        let policy = shaped(&settings, &Seen::default());
        let controller = Controller::new(Arc::clone(&policy), &settings.class_modes, last_good, now)
            .with_alerts(&settings.alerts.rules);
        let (sheds, notes) = mpsc::channel(256);
        let proxy = ProxyState::new(policy, identifier(&settings, key), clock, tasks.clone(), sheds);
        proxy.set_table(controller.table());
        proxy.coalescer.budget().set_max(settings.http.shared_bytes_max);
        proxy.contact.store(settings.contact.clone());
        let app = Arc::new(App {
            started: Arc::clone(&settings),
            awaits_restart: Mutex::default(),
            settings: ArcSwap::from(settings),
            proxy: ArcSwap::from(proxy),
            states: Mutex::default(),
            key: Mutex::new(key),
            clock,
            tasks,
            controller: Mutex::new(controller),
            outlets,
            recent: Mutex::default(),
            tally: Mutex::default(),
            rays_token: OnceLock::new(),
            reads_are_known: Arc::default(),
            ray: ArcSwap::default(),
            costs_of: Mutex::default(),
            quota: Mutex::default(),
            reader: Mutex::default(),
        });
        app.expect_costs(app.settings().ray.unwrap_or(&Seen::default().profile));
        app.start_tasks(notes);
        app
    }

    /// Remembers Ray's token for asking the dashboard about its exporters; the first one counts.
    pub fn know_rays_token(&self, token: String) {
        let _ = self.rays_token.set(Token(token));
    }

    /// Ray's token, if it is known.
    pub fn rays_token(&self) -> Option<&str> {
        self.rays_token.get().map(|token| &*token.0)
    }

    /// What it runs by at the moment.
    pub fn settings(&self) -> Arc<Settings> {
        self.settings.load_full()
    }

    /// Where the adjustment log is written.
    pub fn adjustment_log_dir(&self) -> std::path::PathBuf {
        self.started.adjustment_log.dir.clone()
    }

    /// Sections of the configuration in force that only a restart puts into effect.
    pub fn awaits_restart(&self) -> Vec<&'static str> {
        self.awaits_restart.lock().clone()
    }

    /// The proxy at the moment.
    pub fn proxy(&self) -> Arc<ProxyState> {
        self.proxy.load_full()
    }

    /// What a listener for one kind of traffic needs; it is renewed at every reload.
    pub fn listener_state(
        &self,
        surface: Surface,
        upstream: Address,
    ) -> Result<Arc<ArcSwap<ListenerState>>, Vec<RouteError>> {
        let settings = self.settings();
        let options = Options {
            protocol: Protocol::of(surface),
            connect_timeout: settings.http.connect_timeout,
            answer: AnswerBounds::from(&settings.http),
            ..Options::default()
        };
        let classifier = Classifier::new(&settings.policy, surface, &settings.routes)?;
        let is_the_head = match &upstream {
            Address::Tcp(authority) | Address::Tls(authority, _) => {
                *authority == settings.upstream.authority()
            }
            Address::Unix(_) => false,
        };
        let upstream = Upstream::new(upstream, options, self.clock, self.tasks.clone());
        self.sweep(Arc::clone(&upstream));
        let reads = if is_the_head { Arc::clone(&self.reads_are_known) } else { Arc::default() };
        let routing = Routing::new(surface, classifier, upstream).with_reads(reads);
        let state =
            ListenerState::new(self.proxy(), Arc::new(routing.for_pages_of(&settings.http.cors_origins)));
        self.states.lock().push(Arc::clone(&state));
        Ok(state)
    }

    /// Takes on new settings under live traffic: policy, routes, identities and alert rules from
    /// the next request on, limits and counters where they were. What belongs to the start (where
    /// to listen, where Ray is, where to write) is left as it was and named in the answer.
    ///
    /// # Errors
    /// What is wrong with the routes; then nothing has changed.
    pub fn reload(&self, settings: &Arc<Settings>) -> Result<Vec<&'static str>, Vec<RouteError>> {
        let states = self.states.lock();
        let in_force = Arc::new(in_force(&self.started, settings));
        self.put_in_force(&states, &in_force, &shaped(settings, &self.ray.load()))?;
        *self.awaits_restart.lock() = needs_restart(&self.started, settings);
        Ok(self.awaits_restart())
    }

    /// Takes in which Ray is at `upstream`: where it is another than was thought, its profile goes into force as
    /// new settings would.
    pub fn on_ray(&self, seen: &Seen) {
        // Held until the end: no reload comes in between.
        let states = self.states.lock();
        let before = self.ray.swap(Arc::new(seen.clone()));
        let settings = self.settings();
        let view = seen.view(settings.ray);
        if *before == *seen {
            return;
        }
        tracing::info!(ray = view.version, "{}", view.says);
        self.expect_costs(settings.ray.unwrap_or(&seen.profile));
        self.forget_costs_of_another(seen);
        if settings.ray.is_some() || before.profile.one_process == seen.profile.one_process {
            return;
        }
        if let Err(faults) = self.put_in_force(&states, &settings, &shaped(&settings, seen)) {
            // The same routes were taken with the same classes before.
            tracing::error!(?faults, "could not apply the profile of this Ray version");
            return;
        }
        self.note(Event::ConfigChange(ConfigChange {
            accepted: true,
            policy_version: self.policy_version(),
            source: format!(
                "Ray {} at {}",
                view.version.as_deref().unwrap_or("there"),
                settings.upstream.url()
            ),
            changes: vec![view.says],
            problems: Vec::new(),
        }));
    }

    /// The Ray at `upstream`, and the profile in force.
    pub fn ray(&self) -> RayView {
        self.ray.load().view(self.settings().ray)
    }

    /// The reader of a watch by these settings: it goes on with what the last watch has read, where that reads alike.
    pub fn next_reader(&self, settings: &Arc<Settings>) -> SharedReader {
        let mut last = self.reader.lock();
        let reader = last.as_ref().map_or_else(
            || SignalReader::new(&settings.policy),
            |(before, reader)| {
                let reader = reader.lock();
                let mut next = reader.reconfigure(&before.policy, &settings.policy);
                let sources = |of: &Settings| (of.metrics.clone(), of.probe.clone(), of.upstream.clone());
                if sources(before) != sources(settings) {
                    next.forget();
                }
                next
            },
        );
        let reader = Arc::new(Mutex::new(reader));
        *last = Some((Arc::clone(settings), Arc::clone(&reader)));
        reader
    }

    /// Whether a limit follows how many jobs wait for their start.
    pub fn follows_job_starts(&self) -> bool {
        self.controller().follows_job_starts()
    }

    /// Whether a signal has a fresh reading.
    pub fn has_read(&self, signal: &str) -> bool {
        let view = self.view();
        view.signals.iter().any(|known| known.name == signal && known.health == SignalHealth::Fresh)
    }

    /// What is known of the Ray at `upstream`.
    pub fn seen(&self) -> Arc<Seen> {
        self.ray.load_full()
    }

    /// Takes in what routes cost another process's Ray, which is forgotten again if this one turns out to be another.
    pub fn recall_costs(&self, of: Option<RayIdentity>, learnt: impl Iterator<Item = (u16, [f64; 3])>) {
        let mut costs_of = self.costs_of.lock();
        let proxy = self.proxy();
        learnt.for_each(|(route, cost)| proxy.admission.costs().recall(route, cost));
        *costs_of = of;
    }

    /// What has been learnt of routes, and the Ray whose they are, if it is known.
    pub fn learnt_costs(&self) -> (Option<RayIdentity>, Vec<(u16, [f64; 3])>) {
        let costs_of = self.costs_of.lock();
        (costs_of.clone(), self.proxy().admission.costs().learnt().collect())
    }

    /// What another Ray's routes took says nothing of this one's.
    fn forget_costs_of_another(&self, seen: &Seen) {
        let Some(ray) = seen.identity() else { return };
        let mut costs_of = self.costs_of.lock();
        match &*costs_of {
            // Its version is not forgotten because it is withheld for a while: what comes after may have the same profile.
            Some(before) if before.may_be(&ray) && ray.version.is_none() => return,
            Some(before) if !before.may_be(&ray) => {
                self.proxy().admission.costs().forget();
                tracing::info!(
                    "the learnt costs of routes came from another Ray version; learning them again"
                );
            }
            _ => {}
        }
        *costs_of = Some(ray);
    }

    /// What routes cost before anything has been learnt.
    fn expect_costs(&self, profile: &Profile) {
        let proxy = self.proxy();
        let costs = proxy.admission.costs();
        costs.expect_nothing();
        profile.expected_costs().for_each(|(route, seconds)| costs.expect(route, seconds));
    }

    fn put_in_force(
        &self,
        states: &[Arc<ArcSwap<ListenerState>>],
        settings: &Arc<Settings>,
        policy: &Arc<Policy>,
    ) -> Result<(), Vec<RouteError>> {
        let mut renewed = Vec::new();
        for state in states {
            let old = state.load();
            let surface = old.routing.surface;
            let classifier = Classifier::new(policy, surface, &settings.routes)?;
            renewed.push(Arc::new(old.routing.with_classifier(classifier)));
        }
        let proxy = {
            let mut controller = self.controller();
            *controller = controller.reconfigure(
                Arc::clone(policy),
                &settings.class_modes,
                &settings.alerts.rules,
                self.clock.now(),
            );
            if let Some(part) = &mut *self.quota() {
                part.take_over(Arc::clone(policy), &controller.table());
            }
            self.settings.store(Arc::clone(settings));
            self.proxy().contact.store(settings.contact.clone());
            self.reconfigure_proxy(&controller)
        };
        for (state, routing) in states.iter().zip(renewed) {
            state.store(Arc::new(ListenerState { proxy: Arc::clone(&proxy), routing }));
        }
        Ok(())
    }

    /// From now on identities are known by this key: the digest of every client changes, so that
    /// debts in queues and under ceilings are forgiven once.
    pub fn adopt_key(&self, key: [u64; 2]) {
        let states = self.states.lock();
        let proxy = {
            let controller = self.controller();
            let before = std::mem::replace(&mut *self.key.lock(), key);
            if before != key {
                // Every remembered client has another digest from now on.
                self.proxy().admission.history().clear();
            }
            self.reconfigure_proxy(&controller)
        };
        for state in states.iter() {
            let routing = Arc::clone(&state.load().routing);
            state.store(Arc::new(ListenerState { proxy: Arc::clone(&proxy), routing }));
        }
    }

    /// The key of all digests of identities.
    pub fn key(&self) -> [u64; 2] {
        *self.key.lock()
    }

    /// Puts a new proxy in the old one's place, by the controller's policy, the settings and the key.
    fn reconfigure_proxy(&self, controller: &Controller) -> Arc<ProxyState> {
        let old = self.proxy();
        let table = self.part_of(controller.table());
        let identifier = identifier(&self.settings(), self.key());
        let proxy = old.reconfigure(Arc::clone(controller.policy()), identifier, table);
        self.proxy.store(Arc::clone(&proxy));
        if let Some(trace_writer) = &*proxy.trace_writer.load() {
            self.note_names(trace_writer, &proxy);
        }
        proxy
    }

    /// From now on, what passes is written down too.
    pub fn start_trace(&self, trace_writer: TraceSender) {
        let proxy = self.proxy();
        self.note_names(&trace_writer, &proxy);
        proxy.trace_writer.store(Some(Arc::new(trace_writer)));
    }

    /// Nothing more is written down; the recorder's writer ends.
    pub fn stop_trace(&self) {
        self.proxy().trace_writer.store(None);
    }

    /// Names and limits, which every number after them stands for.
    fn note_names(&self, trace_writer: &TraceSender, proxy: &ProxyState) {
        let now = self.clock.now();
        let head = trace_writer::names(&proxy.policy, self.settings().routes.len(), now, self.clock.wall());
        trace_writer.note(now, Note::Names(proxy.generation, head));
        trace_writer.note(now, Note::Table(proxy.table.load_full()));
    }

    /// Nothing else looks after idle connections.
    fn sweep(&self, upstream: Arc<Upstream>) {
        self.tasks.every(SWEEP, move || upstream.sweep());
    }

    /// Takes in a round of readings.
    pub fn on_readings(&self, readings: &[(SignalId, Result<Reading, Missing>)]) {
        if let Some(trace_writer) = &*self.proxy().trace_writer.load() {
            let read = readings.iter().filter_map(|(_, reading)| reading.as_ref().ok().cloned()).collect();
            trace_writer.note(self.clock.now(), Note::Readings(read));
        }
        let effects = self.controller().on_readings(readings, self.clock.now());
        self.carry_out(effects);
    }

    /// Takes in whether it is known what the handlers of the Ray at `upstream` read of a query.
    pub fn on_reads_known(&self, known: bool) {
        self.reads_are_known.store(known, Ordering::Relaxed);
    }

    /// Whether it is known what the handlers of the Ray at `upstream` read of a query.
    pub fn knows_reads(&self) -> bool {
        self.reads_are_known.load(Ordering::Relaxed)
    }

    /// Takes in whether Ray accepts connections.
    pub fn on_upstream(&self, problem: Option<&str>) {
        if problem.is_some() {
            // Another version may come back, and one that knows none of the jobs.
            self.on_reads_known(false);
            self.proxy().submitted.lock().forget();
        }
        let effects = self.controller().on_upstream(problem, self.clock.now());
        self.carry_out(effects);
    }

    /// Takes in why the last configuration was refused, or that it was not.
    pub fn on_config(&self, problem: Option<&str>) {
        self.controller().on_config(problem);
    }

    /// Carries out an operator's order.
    pub fn override_limits(&self, order: &Override, who: &str, why: &str) -> Result<(), OverrideError> {
        let effects = self.controller().on_override(order, who, why, self.clock.now(), self.clock.wall())?;
        self.carry_out(effects);
        Ok(())
    }

    /// The whole at this moment.
    pub fn view(&self) -> View {
        let mut view = self.controller().view(self.clock.now());
        let proxy = self.proxy();
        let usage = proxy.usage();
        for (class, id) in view.classes.iter_mut().zip((0..).map(ClassId)) {
            (class.work_under_way_s, class.work_limit_s) = proxy.admission.work(id);
            class.held_by = proxy.admission.held_by(id);
            class.shared = usage.class(id).map_or(0, |traffic| traffic.counts.shared);
        }
        drop(usage);
        view
    }

    /// The proxy's counts as of the last tick, in the policy's order, and when that was.
    pub fn proxy_reading(&self) -> (ProxyReading, Time) {
        let controller = self.controller();
        (controller.proxy().clone(), controller.ticked_at())
    }

    /// What was counted of the events so far.
    pub fn tally(&self) -> EventCounts {
        self.tally.lock().clone()
    }

    /// Events lost from the adjustment log since the start.
    pub fn events_lost(&self) -> u64 {
        self.outlets.adjustment_log.events_lost()
    }

    /// Limits worth starting from next time.
    pub fn last_good(&self) -> Vec<LastGood> {
        self.controller().last_good()
    }

    /// How many configurations have been accepted.
    pub fn policy_version(&self) -> u64 {
        self.controller().policy_version()
    }

    /// The latest events after a moment, or all, oldest first; single refusals are in the adjustment log alone,
    /// or a flood would wash out the adjustments that answer it.
    pub fn recent(&self, after: Option<WallMs>) -> Vec<Entry> {
        self.recent.lock().after(after)
    }

    /// How far back the latest events reach.
    pub fn recent_since(&self) -> Option<WallMs> {
        self.recent.lock().since()
    }

    /// Writes an event to the adjustment log.
    pub fn note(&self, event: Event) {
        let entry = Entry { time: self.clock.wall(), at: self.clock.now(), event };
        self.tally.lock().take(&entry.event);
        if !matches!(entry.event, Event::Shed(_)) {
            self.recent.lock().push(&entry);
        }
        // What does not fit is counted as lost by the adjustment log, which writes a gap event for it.
        let _ = self.outlets.adjustment_log.record(entry);
    }

    /// Writes the first line of this run's adjustment log.
    pub fn note_start(&self, run: &str) {
        let event = self.controller().start_event(env!("CARGO_PKG_VERSION"), run);
        self.note(event);
    }

    fn start_tasks(self: &Arc<Self>, mut notes: mpsc::Receiver<ShedNote>) {
        let app = Arc::clone(self);
        self.tasks.every(TICK, move || app.tick());
        let app = Arc::clone(self);
        self.tasks.every_until_drained(PUMP, move || {
            let proxy = app.proxy();
            if proxy.admission.waiting() > 0 {
                proxy.pump();
            }
        });
        let app = Arc::clone(self);
        self.tasks.spawn_until_drained(async move {
            while let Some(note) = notes.recv().await {
                app.note_shed(&note);
            }
        });
    }

    fn tick(&self) {
        let now = self.clock.now();
        let effects = {
            // The lock keeps a reload from coming between the proxy's reading and its policy.
            let mut controller = self.controller();
            let proxy = read_proxy(&self.proxy().admission, controller.policy().classes.len(), now);
            controller.on_events_lost(self.outlets.adjustment_log.events_lost());
            if let Some(part) = &mut *self.quota() {
                part.observe(&proxy);
            }
            controller.on_job_starts(self.proxy().submitted.lock().waiting(now));
            controller.on_tick(proxy, now, self.clock.wall())
        };
        self.carry_out(effects);
    }

    pub(super) fn carry_out(&self, effects: Effects) {
        if let Some(table) = effects.table {
            let table = self.part_of(table);
            let proxy = self.proxy();
            if let Some(trace_writer) = &*proxy.trace_writer.load() {
                trace_writer.note(self.clock.now(), Note::Table(Arc::clone(&table)));
            }
            proxy.set_table(table);
        }
        for (class, seconds) in effects.spreads {
            self.proxy().admission.spread(class, seconds);
        }
        for event in effects.events {
            self.note(event);
        }
        for transition in effects.alerts {
            // A full queue is the notifier's to report; the adjustment log has the alert already.
            let _ = self.outlets.alerts.try_send(transition);
        }
    }

    fn note_shed(&self, note: &ShedNote) {
        let proxy = self.proxy();
        let policy = &proxy.policy;
        // A note may be a reload older than the proxy it is read by.
        let Some(class) = policy.classes.get(note.shed.class.index()) else { return };
        let table = proxy.table.load();
        let limits = table.class(note.shed.class);
        let (work_s, work_limit_s) = proxy.admission.work(note.shed.class);
        let event = Event::Shed(ShedEvent {
            request: note.id.clone(),
            class: class.name.to_string(),
            module: policy.modules[class.module.index()].name.to_string(),
            cause: note.shed.reason,
            shadow: false,
            client: format!("{:016x}", note.client),
            retry_after_s: note.shed.retry_after_s,
            table: table.version,
            in_flight_limit: limits.in_flight,
            in_flight: proxy.admission.load(note.shed.class).0,
            rate_limit: limits.rate,
            work_s: work_limit_s.map(|_| work_s),
            work_limit_s,
            waited_ms: u64::try_from(note.waited.as_millis()).unwrap_or(u64::MAX),
            via: note.via,
        });
        self.note(event);
    }

    pub(super) fn quota(&self) -> MutexGuard<'_, Option<Quota>> {
        // What is held is valid between any two fields.
        self.quota.lock()
    }

    /// The table as this proxy may use it: its part, where several replicas share the limits.
    pub(super) fn part_of(&self, table: Arc<LimitTable>) -> Arc<LimitTable> {
        match &*self.quota() {
            Some(part) => Arc::new(part.of(&table, self.clock.now())),
            None => table,
        }
    }

    pub(super) fn controller(&self) -> MutexGuard<'_, Controller> {
        // A panic in one step leaves the controller as it was between two fields at worst; its
        // limits stay within their bounds, and a proxy without a loop would be worse.
        self.controller.lock()
    }
}

/// The settings' policy as this Ray needs it.
fn shaped(settings: &Settings, ray: &Seen) -> Arc<Policy> {
    Arc::new(settings.ray.unwrap_or(&ray.profile).shape(&settings.policy))
}

fn identifier(settings: &Settings, key: [u64; 2]) -> Identifier {
    let identity = &settings.identity;
    Identifier::new(key, settings.trusted_proxies.clone(), identity.headers.clone())
        .with_keys(identity.api_key_header.clone(), identity.api_keys.iter().map(|key| key.sha256).collect())
        .with_agents(identity.agent_header.clone(), identity.agents.clone())
}

/// The new settings, but of what belongs to the start what it was then: a probe that asks another head than requests
/// go to would tell of the wrong one.
fn in_force(started: &Settings, new: &Settings) -> Settings {
    let mut settings = new.clone();
    settings.upstream.clone_from(&started.upstream);
    settings.listeners.clone_from(&started.listeners);
    settings.http.clone_from(&started.http);
    settings.admin.clone_from(&started.admin);
    settings.ratelimit_service.clone_from(&started.ratelimit_service);
    settings.replicas.clone_from(&started.replicas);
    settings.state_dir.clone_from(&started.state_dir);
    settings.adjustment_log.clone_from(&started.adjustment_log);
    settings.log.clone_from(&started.log);
    settings.metrics.token.clone_from(&started.metrics.token);
    settings.alerts.repeat = started.alerts.repeat;
    settings.alerts.runbook_url.clone_from(&started.alerts.runbook_url);
    settings.alerts.notify.clone_from(&started.alerts.notify);
    settings
}

/// What of the new settings only a restart can put into force.
fn needs_restart(before: &Settings, after: &Settings) -> Vec<&'static str> {
    let parts = [
        ("upstream", before.upstream == after.upstream),
        ("listen", before.listeners == after.listeners),
        ("http", before.http == after.http),
        ("admin", before.admin == after.admin),
        ("ratelimit_service", before.ratelimit_service == after.ratelimit_service),
        ("replicas", before.replicas == after.replicas),
        ("state_dir", before.state_dir == after.state_dir),
        ("adjustment_log", before.adjustment_log == after.adjustment_log),
        ("log", before.log == after.log),
        ("metrics.token", before.metrics.token == after.metrics.token),
        ("alerts.repeat", before.alerts.repeat == after.alerts.repeat),
        ("alerts.runbook_url", before.alerts.runbook_url == after.alerts.runbook_url),
        ("alerts.notify", before.alerts.notify == after.alerts.notify),
    ];
    parts.into_iter().filter(|(_, same)| !same).map(|(part, _)| part).collect()
}
