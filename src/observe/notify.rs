//! Telling people: alerts that began or ended.

use crate::core::alert::{AlertState, Transition};
use crate::runtime::guard::Guard;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Hands alerts on until the guard's tasks close. Without a configured receiver they are in the
/// program's log and in the record.
pub fn start(guard: &Arc<Guard>, mut transitions: mpsc::Receiver<Transition>) {
    guard.tasks.spawn_until_closed(async move {
        while let Some(transition) = transitions.recv().await {
            match transition.state {
                AlertState::Firing => {
                    tracing::warn!(alert = transition.key, severity = ?transition.severity, "{}", transition.summary);
                }
                AlertState::Resolved => tracing::info!(alert = transition.key, "resolved: {}", transition.summary),
            }
        }
    });
}
