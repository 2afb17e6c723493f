//! What keys and options are called now that had another name once: the old one is refused, and the
//! message says the new one.

/// A key's path (`*.` for any table before it), and what it is called now.
const KEYS: &[(&str, &str)] = &[
    ("*.per_party", "per_client"),
    ("ledger", "[adjustment_log]"),
    ("fleet", "[replicas]"),
    ("replicas.replicas", "count"),
    ("ratelimit_service.place_max", "permit_max"),
    ("alerts.rule.record-gaps", "alerts.rule.adjustment-log-gaps"),
    ("alerts.rule.fleet-store-down", "alerts.rule.replica-store-down"),
];

/// Options of the command line.
const OPTIONS: &[(&str, &str)] =
    &[("--ledger", "--adjustment-log"), ("--journal", "--adjustment-log"), ("--rivals", "--baselines")];

/// What the key at this path is called now, if it had this name once.
pub fn key(path: &str) -> Option<&'static str> {
    let is_it = |old: &str| {
        old.strip_prefix('*')
            .map_or(path == old, |end| path.ends_with(end) || path == end.trim_start_matches('.'))
    };
    KEYS.iter().find(|(old, _)| is_it(old)).map(|(_, new)| *new)
}

/// What this option of the command line is called now, if it had this name once.
pub fn option(old: &str) -> Option<&'static str> {
    OPTIONS.iter().find(|(name, _)| *name == old).map(|(_, new)| *new)
}

#[cfg(test)]
mod tests {
    use super::KEYS;
    use crate::{Overrides, parse};

    #[test]
    fn every_old_key_is_refused_with_its_new_name() {
        for (old, new) in KEYS {
            let text = match (old.strip_prefix("*."), old.rsplit_once('.')) {
                (Some(key), _) => format!("[class.views]\n{key} = {{ in_flight = 4 }}\n"),
                (None, Some(("alerts.rule", name))) => format!("[alerts.rule.{name}]\nenabled = false\n"),
                (None, Some((table, key))) => format!("[{table}]\n{key} = 1\n"),
                (None, None) => format!("[{old}]\n"),
            };
            let refused = parse(&text, "old.toml", &Overrides::default()).unwrap_err().to_string();
            assert!(refused.contains(new) && refused.contains("has a new name"), "{old}: {refused}");
        }
    }
}
