//! The shared store: Redis, or anything that speaks its protocol and runs its scripts (Valkey).
//!
//! Each renewal is one round trip: one atomic script over all limits. The script is the book
//! ([`crate::core::replicas::lease_book`]); what it keeps stands under five keys of one hash slot, so that a
//! Redis Cluster runs it too. The connection is made when it is needed and made anew after any
//! fault; whatever was given up on may still be executed, which the book allows for. With `rediss://`
//! it is in TLS, and only the configured authorities vouch for the store. Neither the
//! password nor the address's user part is ever shown: errors carry what Redis says, no more.

use crate::config::settings;
use crate::core::replicas::Timing;
use crate::core::replicas::lease_holder::Renewal;
use crate::core::replicas::max_min::Level;
use crate::proxy::tls::{Originator, Renew, TlsError};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ConnectionAddr, IntoConnectionInfo, Script};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

/// A store that takes longer is as good as none: leases would run out meanwhile.
const PATIENCE_MAX: Duration = Duration::from_secs(2);

/// Why the store cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The address makes no sense to the client.
    #[error("`replicas.url` is not the address of a Redis: {0}; write redis://host:port/database")]
    Address(String),
    /// It did not answer in time.
    #[error("no answer within {0:?}")]
    Late(Duration),
    /// It, or the way to it, says no.
    #[error("{0}")]
    Redis(String),
    /// No trusted authority vouches for it.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// It answers what the script does not.
    #[error("its answer cannot be read ({0}); does another version of rayguard share `replicas.group`?")]
    Nonsense(String),
}

/// A connection, and what moves its bytes where nothing else does.
type Driven = (MultiplexedConnection, Option<Driver>);
type Driver = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A client of the shared store.
pub struct Store {
    client: Client,
    /// What vouches for it, where the connection is TLS.
    tls: Option<Originator>,
    keys: [String; 4],
    renew: Script,
    publish: Script,
    leave: Script,
    connection: Option<Driven>,
    timing: Timing,
    /// How long to wait for the store's answer.
    patience: Duration,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("keys", &self.keys).finish_non_exhaustive()
    }
}

/// What is sent.
#[derive(Serialize)]
struct Ask<'a> {
    member: &'a str,
    seq: u64,
    acknowledged: u64,
    ttl: u128,
    lead: u128,
    remember: u128,
    turn: u128,
    leaving: bool,
    stamp: &'a str,
    replica: &'a str,
    key: String,
    /// cap, used, demand, safe, limit
    claims: BTreeMap<&'a str, [u64; 5]>,
}

/// What a renewal says in addition to its claims.
#[derive(Clone, Copy, Debug)]
pub struct Says<'a> {
    /// The stamp of the table it follows.
    pub stamp: &'a str,
    /// Its report, for the leader.
    pub replica: &'a str,
    /// The key it knows identities by, for a store that has none.
    pub key: [u64; 2],
}

/// What is answered.
#[derive(Deserialize, Debug, Default)]
#[serde(default)]
pub struct Told {
    stale: bool,
    leases: Sparse,
    /// Replicas that renew.
    pub live: u32,
    /// Replicas that fell silent.
    pub silent: u32,
    /// Who leads.
    pub leader: String,
    /// By which token.
    pub token: u64,
    /// For the leader: member, replica, member, replica, ...
    pub replicas: Vec<String>,
    /// For the leader: what is kept for the silent, by limit.
    pub reserved: Sparse,
    /// For others, when it is not the one they have: the stamp of the leader's table.
    pub stamp: Option<String>,
    /// The leader's table.
    pub table: Option<String>,
    /// For others: how the leader shares the limits out among identities.
    pub shares: Option<String>,
    key: String,
}

/// Amounts by limit. Lua has one kind of table, and writes an empty one as a list.
#[derive(Deserialize, Debug, Default)]
#[serde(untagged)]
pub enum Sparse {
    /// Some.
    Some(BTreeMap<String, f64>),
    /// None.
    None([(); 0]),
    /// Not told.
    #[default]
    Absent,
}

impl Sparse {
    /// The amount for one limit.
    pub fn get(&self, name: &str) -> u64 {
        let Sparse::Some(amounts) = self else { return 0 };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "as-casts saturate")]
        let whole = amounts.get(name).map_or(0, |amount| *amount as u64);
        whole
    }
}

impl Told {
    /// The key all replicas know identities by.
    pub fn key(&self) -> Option<[u64; 2]> {
        let (first, second) = self.key.split_at_checked(16)?;
        Some([u64::from_str_radix(first, 16).ok()?, u64::from_str_radix(second, 16).ok()?])
    }

    /// The leases, in the order of these limits.
    pub fn leases(&self, names: &[String]) -> Vec<u64> {
        names.iter().map(|name| self.leases.get(name)).collect()
    }
}

impl Store {
    /// The store of these settings, which has not been asked yet.
    pub fn of(replicas: &settings::Replicas, password: Option<&str>) -> Result<Store, StoreError> {
        let mut store = Store::new(&replicas.url, password, &replicas.group, replicas.timing)?;
        let tls = replicas.tls.as_ref();
        store.tls = tls.map(|tls| Originator::new(tls.name.clone(), &tls.authorities)).transpose()?;
        Ok(store)
    }

    /// A store that has not been asked yet, spoken with in the open.
    pub fn new(url: &str, password: Option<&str>, group: &str, timing: Timing) -> Result<Store, StoreError> {
        let address = |error: redis::RedisError| StoreError::Address(error.kind_words());
        // The client is built without TLS: the one that is spoken at the replica serves here too.
        let open = url.strip_prefix("rediss:").map(|rest| format!("redis:{rest}"));
        let info = open.as_deref().unwrap_or(url).into_connection_info().map_err(address)?;
        let mut settings = info.redis_settings().clone();
        if let Some(password) = password {
            settings = settings.set_password(password);
        }
        let client = Client::open(info.set_redis_settings(settings)).map_err(address)?;
        let key = |of: &str| format!("{{rayguard:{group}}}:{of}");
        Ok(Store {
            client,
            tls: None,
            keys: [key("state"), key("members"), key("until"), key("replicas")],
            renew: Script::new(include_str!("renew.lua")),
            publish: Script::new(include_str!("publish.lua")),
            leave: Script::new(include_str!("leave.lua")),
            connection: None,
            timing,
            patience: (timing.period * 4).min(PATIENCE_MAX),
        })
    }

    /// Whether it answers and runs scripts; leaves nothing behind.
    pub async fn greet(&mut self) -> Result<(), StoreError> {
        self.run::<u32>(&Script::new("return #cjson.encode({}) - 1"), &[]).await.map(drop)
    }

    /// One renewal. `at_ms` is the time for a test; the store has its own.
    pub async fn renew(
        &mut self,
        member: &str,
        names: &[String],
        renewal: &Renewal,
        says: &Says<'_>,
        at_ms: Option<u64>,
    ) -> Result<Option<Told>, StoreError> {
        let timing = self.timing;
        let claims = names.iter().zip(&renewal.claims);
        let ask = Ask {
            member,
            seq: renewal.seq,
            acknowledged: renewal.acknowledged,
            ttl: timing.ttl().as_millis(),
            lead: timing.lead().as_millis(),
            remember: timing.remember.as_millis(),
            turn: timing.period.as_millis() * 4,
            leaving: renewal.leaving,
            stamp: says.stamp,
            replica: says.replica,
            key: format!("{:016x}{:016x}", says.key[0], says.key[1]),
            claims: claims
                .map(|(name, of)| (name.as_str(), [of.cap, of.used, of.demand, of.safe, of.limit]))
                .collect(),
        };
        let ask = serde_json::to_string(&ask).map_err(|error| StoreError::Nonsense(error.to_string()))?;
        let at = at_ms.map_or_else(String::new, |ms| ms.to_string());
        let script = self.renew.clone();
        let text: String = self.run(&script, &[&ask, &at]).await?;
        let told: Told =
            serde_json::from_str(&text).map_err(|error| StoreError::Nonsense(error.to_string()))?;
        Ok((!told.stale).then_some(told))
    }

    /// Publishes the leader's division, and the stamp of its table, the table and the shares;
    /// `false` under a token that is not the present one.
    pub async fn publish(
        &mut self,
        member: &str,
        token: u64,
        levels: &BTreeMap<&str, Level>,
        [stamp, table, shares]: [&str; 3],
    ) -> Result<bool, StoreError> {
        let levels: BTreeMap<&str, (u64, i64, u64)> = levels
            .iter()
            .map(|(name, of)| {
                let level = of.level.map_or(-1, |level| i64::try_from(level).unwrap_or(i64::MAX));
                (*name, (of.limit, level, of.slack))
            })
            .collect();
        let levels =
            serde_json::to_string(&levels).map_err(|error| StoreError::Nonsense(error.to_string()))?;
        let script = self.publish.clone();
        let done: u32 =
            self.run(&script, &[member, &token.to_string(), &levels, stamp, table, shares]).await?;
        Ok(done == 1)
    }

    /// Gives everything back.
    pub async fn leave(&mut self, member: &str) -> Result<(), StoreError> {
        let script = self.leave.clone();
        self.run::<u32>(&script, &[member]).await.map(drop)
    }

    async fn run<T: redis::FromRedisValue>(
        &mut self,
        script: &Script,
        args: &[&str],
    ) -> Result<T, StoreError> {
        let patience = self.patience;
        let outcome = tokio::time::timeout(patience, self.attempt(script, args)).await;
        let outcome = outcome.unwrap_or(Err(StoreError::Late(patience)));
        if outcome.is_err() {
            self.connection = None;
        }
        outcome
    }

    async fn attempt<T: redis::FromRedisValue>(
        &mut self,
        script: &Script,
        args: &[&str],
    ) -> Result<T, StoreError> {
        let (mut connection, mut driver) = match self.connection.take() {
            Some(line) => line,
            None => self.connect().await?,
        };
        let mut call = script.prepare_invoke();
        for key in &self.keys {
            call.key(key);
        }
        for arg in args {
            call.arg(*arg);
        }
        let answer = call.invoke_async(&mut connection);
        let value = match &mut driver {
            None => answer.await,
            Some(driver) => tokio::select! {
                answer = answer => answer,
                () = driver => return Err(StoreError::Redis("the connection was closed".to_owned())),
            },
        };
        let value = value.map_err(said)?;
        self.connection = Some((connection, driver));
        Ok(value)
    }

    /// By `&mut`: what moves the bytes of a connection may not be looked at from two threads.
    async fn connect(&mut self) -> Result<Driven, StoreError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.patience))
            .set_response_timeout(Some(self.patience));
        let info = self.client.get_connection_info();
        let (Some(tls), ConnectionAddr::Tcp(host, port)) = (&self.tls, info.addr()) else {
            let connection = self.client.get_multiplexed_async_connection_with_config(&config).await;
            return Ok((connection.map_err(said)?, None));
        };
        let broke = |error: std::io::Error| StoreError::Redis(error.to_string());
        let stream = tokio::net::TcpStream::connect((host.as_str(), *port)).await.map_err(broke)?;
        stream.set_nodelay(true).map_err(broke)?;
        if let Err(error) = tls.renew() {
            tracing::warn!(%error, "could not reload the shared store's CA bundle; using the previous one");
        }
        let (connector, name) = tls.connector_of_other();
        let stream = connector.connect(name, stream).await.map_err(broke)?;
        let made = MultiplexedConnection::new_with_config(info.redis_settings(), stream, config).await;
        let (connection, driver) = made.map_err(said)?;
        Ok((connection, Some(Box::pin(driver))))
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for `map_err`")]
fn said(error: redis::RedisError) -> StoreError {
    StoreError::Redis(error.kind_words())
}

/// An error in words that hold no address with a password in it.
trait KindWords {
    fn kind_words(&self) -> String;
}

impl KindWords for redis::RedisError {
    fn kind_words(&self) -> String {
        match (self.code(), self.detail()) {
            (Some(code), Some(detail)) => format!("{code} {detail}"),
            (Some(code), None) => code.to_owned(),
            (None, Some(detail)) => format!("{} ({detail})", self.category()),
            (None, None) => self.to_string(),
        }
    }
}
