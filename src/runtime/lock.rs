//! One process for one state directory.
//!
//! Two processes that write one adjustment log tear its sequence, and each overwrites the last good
//! limits of the other. So the process that runs holds the file `lock` in the directory, by a lock of the
//! operating system that ends with the process however it ends (a `kill -9` leaves none behind);
//! the file itself says who holds it. A second process is rejected with that name. A
//! directory in which no file can be made is no reason not to guard: the proxy runs without a
//! record then, and says so.

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

/// The file's name.
pub const FILE_NAME: &str = "lock";

/// The directory is ours for as long as this lives.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held only for its lock")] File);

/// Why the directory is not ours.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process holds it.
    #[error(
        "{dir} is in use by {holder}; stop that rayguard, or give this one a state_dir of its own \
            (--state-dir)",
        dir = .dir.display()
    )]
    Held {
        /// The directory.
        dir: PathBuf,
        /// Who holds it.
        holder: String,
    },
    /// No lock can be made there.
    #[error("{dir} cannot be locked: {source}", dir = .dir.display())]
    Unwritable {
        /// The directory.
        dir: PathBuf,
        /// What the OS says.
        source: io::Error,
    },
}

/// Takes the directory for this process; it is made if it is not there.
pub fn take(dir: &Path) -> Result<Lock, LockError> {
    let unwritable = |source| LockError::Unwritable { dir: dir.to_owned(), source };
    std::fs::create_dir_all(dir).map_err(unwritable)?;
    let path = dir.join(FILE_NAME);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(unwritable)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            let mut holder = String::new();
            // A holder that has not yet written its name is still a holder.
            let _ = file.take(128).read_to_string(&mut holder);
            let holder = holder.lines().next().unwrap_or("another process").to_owned();
            return Err(LockError::Held { dir: dir.to_owned(), holder });
        }
        Err(source) => return Err(unwritable(source.into())),
    }
    let sign = |file: &mut File| {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "process {}", std::process::id())
    };
    // A full disk costs the name, not the lock.
    let _ = sign(&mut file);
    Ok(Lock(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_held_by_one_and_free_again_when_that_ends() {
        let dir = std::env::temp_dir().join(format!("rayguard-lock-{}", std::process::id()));
        let held = take(&dir).unwrap();
        let refused = take(&dir).unwrap_err().to_string();
        assert!(refused.contains(&format!("process {}", std::process::id())), "{refused}");
        assert!(refused.contains("--state-dir"), "{refused}");
        drop(held);
        assert!(take(&dir).is_ok());
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_place_where_no_file_can_be_made_is_told_apart() {
        assert!(matches!(take(Path::new("/proc/rayguard")), Err(LockError::Unwritable { .. })));
    }
}
