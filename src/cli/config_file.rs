//! A configuration file on the command line: `rayguard check FILE` and `rayguard check -c FILE` are the same.

use std::path::{Path, PathBuf};

/// A configuration file, by its place or by its option.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct ConfigFile {
    /// Configuration file. Default: the built-in defaults, and Ray as found on this host.
    #[arg(value_name = "CONFIG", conflicts_with = "config")]
    pub file: Option<PathBuf>,
    /// Same as the positional CONFIG.
    #[arg(long, short, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

impl ConfigFile {
    /// The file, if one was named.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.file.as_deref().or(self.config.as_deref())
    }
}

impl From<Option<PathBuf>> for ConfigFile {
    fn from(config: Option<PathBuf>) -> ConfigFile {
        ConfigFile { file: None, config }
    }
}
