//! The shared store: Redis, or anything that speaks its protocol and runs its scripts (Valkey).
//!
//! Each renewal is one round trip: one atomic script over all limits. The script is the book
//! ([`crate::core::fleet::book`]); what it keeps stands under five keys of one hash slot, so that a
//! Redis Cluster runs it too. The connection is made when it is needed and made anew after any
//! fault; whatever was given up on may still be executed, which the book allows for. Neither the
//! password nor the address's user part is ever shown: errors carry what Redis says, no more.

use crate::core::fleet::Timing;
use crate::core::fleet::division::Level;
use crate::core::fleet::holding::Renewal;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, IntoConnectionInfo, Script};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// A store that takes longer is as good as none: leases would run out meanwhile.
const PATIENCE_MAX: Duration = Duration::from_secs(2);

/// Why the store cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The address makes no sense to the client.
    #[error("`fleet.url` is no address of a Redis: {0}; write redis://host:port/database")]
    Address(String),
    /// It did not answer in time.
    #[error("no answer within {0:?}")]
    Late(Duration),
    /// It, or the way to it, says no.
    #[error("{0}")]
    Redis(String),
    /// It answers what the script does not.
    #[error("its answer cannot be read ({0}); does another version of rayguard share `fleet.group`?")]
    Nonsense(String),
}

/// A client of the shared store.
pub struct Store {
    client: Client,
    keys: [String; 4],
    renew: Script,
    publish: Script,
    leave: Script,
    connection: Option<MultiplexedConnection>,
    timing: Timing,
    /// Whoever does not answer for so long is given up on.
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
    door: &'a str,
    /// cap, used, demand, safe, limit
    claims: BTreeMap<&'a str, [u64; 5]>,
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
    /// For the leader: member, door, member, door, ...
    pub doors: Vec<String>,
    /// For the leader: what is kept for the silent, by limit.
    pub reserved: Sparse,
    /// For others, when it is not the one they have: the stamp of the leader's table.
    pub stamp: Option<String>,
    /// The leader's table.
    pub table: Option<String>,
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
    #[must_use]
    pub fn get(&self, name: &str) -> u64 {
        let Sparse::Some(amounts) = self else { return 0 };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "as-casts saturate")]
        let whole = amounts.get(name).map_or(0, |amount| *amount as u64);
        whole
    }
}

impl Told {
    /// The leases, in the order of these limits.
    #[must_use]
    pub fn leases(&self, names: &[String]) -> Vec<u64> {
        names.iter().map(|name| self.leases.get(name)).collect()
    }
}

impl Store {
    /// A store that has not been asked yet.
    pub fn new(url: &str, password: Option<&str>, group: &str, timing: Timing) -> Result<Store, StoreError> {
        let address = |error: redis::RedisError| StoreError::Address(error.kind_words());
        let info = url.into_connection_info().map_err(address)?;
        let mut settings = info.redis_settings().clone();
        if let Some(password) = password {
            settings = settings.set_password(password);
        }
        let client = Client::open(info.set_redis_settings(settings)).map_err(address)?;
        let key = |of: &str| format!("{{rayguard:{group}}}:{of}");
        Ok(Store {
            client,
            keys: [key("state"), key("members"), key("until"), key("doors")],
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
        stamp: &str,
        door: &str,
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
            stamp,
            door,
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

    /// Publishes the leader's division and table; `false` under a token that is not the present one.
    pub async fn publish(
        &mut self,
        member: &str,
        token: u64,
        levels: &BTreeMap<&str, Level>,
        stamp: &str,
        table: &str,
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
        let done: u32 = self.run(&script, &[member, &token.to_string(), &levels, stamp, table]).await?;
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
        let said = |error: redis::RedisError| StoreError::Redis(error.kind_words());
        let mut connection = if let Some(connection) = self.connection.take() {
            connection
        } else {
            let config = AsyncConnectionConfig::new()
                .set_connection_timeout(Some(self.patience))
                .set_response_timeout(Some(self.patience));
            self.client.get_multiplexed_async_connection_with_config(&config).await.map_err(said)?
        };
        let mut call = script.prepare_invoke();
        for key in &self.keys {
            call.key(key);
        }
        for arg in args {
            call.arg(*arg);
        }
        let value = call.invoke_async(&mut connection).await.map_err(said)?;
        self.connection = Some(connection);
        Ok(value)
    }
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
