//! Where secrets are read: the environment and files.

use crate::config::settings::{Secret, Settings};

/// Why there is no secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file cannot be read.
    #[error("the {what} cannot be read from {path}: {source}")]
    File {
        /// What it is for.
        what: String,
        /// Where.
        path: String,
        /// What the OS says.
        source: std::io::Error,
    },
    /// The variable is not set.
    #[error("the {what} should be in the environment variable {name}, which is not set")]
    Env {
        /// What it is for.
        what: String,
        /// Its name.
        name: String,
    },
    /// There is nothing in it.
    #[error("the {what} in {place} is empty; an empty secret protects nothing")]
    Empty {
        /// What it is for.
        what: String,
        /// Where.
        place: String,
    },
}

/// Reads a secret; `what` names it in the error.
pub fn read(secret: &Secret, what: &str) -> Result<String, SecretError> {
    let (text, place) = match secret {
        Secret::File(path) => {
            let place = path.display().to_string();
            let text = std::fs::read_to_string(path).map_err(|source| SecretError::File {
                what: what.to_owned(),
                path: place.clone(),
                source,
            })?;
            (text, place)
        }
        Secret::Env(name) => {
            #[expect(
                clippy::disallowed_methods,
                reason = "secrets stand in the environment, and are read here"
            )]
            let text = std::env::var(&**name)
                .map_err(|_| SecretError::Env { what: what.to_owned(), name: name.to_string() })?;
            (text, name.to_string())
        }
    };
    let text = text.trim_end();
    if text.is_empty() {
        return Err(SecretError::Empty { what: what.to_owned(), place });
    }
    Ok(text.to_owned())
}

/// Ray's own token, for asking the dashboard where its exporters are: as configured, or where
/// Ray's own commands find it while `RAY_AUTH_MODE=token`.
pub fn rays_token(settings: &Settings) -> Result<Option<String>, SecretError> {
    match &settings.metrics.token {
        Some(token) => read(token, "token of Ray").map(Some),
        None => Ok(of_ray()),
    }
}

/// Ray's token, where Ray's commands look for it when `RAY_AUTH_MODE` is `token`: in
/// `RAY_AUTH_TOKEN`, in the file `RAY_AUTH_TOKEN_PATH` names, or in `~/.ray/auth_token`.
fn of_ray() -> Option<String> {
    #[expect(clippy::disallowed_methods, reason = "secrets stand in the environment, and are read here")]
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    if !variable("RAY_AUTH_MODE").is_some_and(|mode| mode.eq_ignore_ascii_case("token")) {
        return None;
    }
    let in_file = || {
        let path = variable("RAY_AUTH_TOKEN_PATH")
            .or_else(|| variable("HOME").map(|home| format!("{home}/.ray/auth_token")))?;
        std::fs::read_to_string(path).ok()
    };
    let token = variable("RAY_AUTH_TOKEN").or_else(in_file)?;
    let token = token.trim();
    (!token.is_empty()).then(|| token.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_comes_without_the_line_break_that_editors_add() {
        let path = std::env::temp_dir().join(format!("rayguard-secret-{}", std::process::id()));
        std::fs::write(&path, "s3cret\n").unwrap();
        assert_eq!(read(&Secret::File(path.clone()), "admin token").unwrap(), "s3cret");
        std::fs::write(&path, "\n").unwrap();
        assert!(matches!(read(&Secret::File(path.clone()), "admin token"), Err(SecretError::Empty { .. })));
        std::fs::remove_file(&path).unwrap();
        let gone = read(&Secret::File(path), "admin token").unwrap_err();
        assert!(gone.to_string().starts_with("the admin token cannot be read"), "{gone}");
        let unset = read(&Secret::Env("RAYGUARD_NO_SUCH_VARIABLE".into()), "admin token").unwrap_err();
        assert!(unset.to_string().contains("RAYGUARD_NO_SUCH_VARIABLE"));
    }
}
