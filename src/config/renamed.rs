//! What keys are called now that had another name once: an old key is refused with its new one.

/// A key's path or its end, what it is called now, and what else has changed with it.
const KEYS: &[(&str, &str)] = &[("per_party", "per_client")];

/// What the key at this path is called now, if it had this name once.
#[must_use]
pub(super) fn key(path: &str) -> Option<&'static str> {
    let is_it = |old: &str| path == old || path.strip_suffix(old).is_some_and(|rest| rest.ends_with('.'));
    KEYS.iter().find(|(old, _)| is_it(old)).map(|(_, new)| *new)
}

#[cfg(test)]
mod tests {
    use super::KEYS;
    use crate::{Overrides, parse};

    #[test]
    fn every_old_key_is_refused_with_its_new_name() {
        for (old, new) in KEYS {
            let text = match old.rsplit_once('.') {
                Some((table, key)) => format!("[{table}]\n{key} = 1\n"),
                None if *old == "per_party" => format!("[class.views]\n{old} = {{ in_flight = 4 }}\n"),
                None => format!("[{old}]\n"),
            };
            let refused = parse(&text, "old.toml", &Overrides::default()).unwrap_err().to_string();
            assert!(refused.contains(new), "{old}: {refused}");
            assert!(refused.contains("has a new name"), "{old}: {refused}");
        }
    }
}
