//! Whose decisions count at a replica, and the event that this has changed.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Whose decisions count.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "ReplicaRole")]
pub enum Role {
    /// This replica's.
    Leads,
    /// Another's.
    Follows,
    /// This replica's, for its own part: the store cannot be asked.
    CutOff,
}

/// The role of this replica has changed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct LeadershipChange {
    /// Whose decisions count here from now on.
    pub role: Role,
    /// Who leads.
    pub leader: String,
    /// By which token.
    pub token: u64,
    /// How many replicas share the limits.
    pub replicas: u32,
    /// What is wrong with the store, or empty.
    pub problem: String,
}

impl LeadershipChange {
    /// The change as one sentence.
    #[must_use]
    pub fn sentence(&self) -> String {
        match self.role {
            Role::Leads => {
                format!("this replica is the leader of {} replicas, with token {}", self.replicas, self.token)
            }
            Role::Follows if self.leader.is_empty() => {
                "no leader is known: this replica keeps its current limit table".to_owned()
            }
            Role::Follows => {
                format!(
                    "{} is the leader of {} replicas, with token {}",
                    self.leader, self.replicas, self.token
                )
            }
            Role::CutOff => format!(
                "the shared store is unreachable ({}): this replica continues with an even share, one of {}",
                self.problem, self.replicas
            ),
        }
    }
}
