//! `--format`: for people or for programs, the same in every command.

/// How an answer is written.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Format {
    /// For people: tables and sentences.
    #[default]
    Table,
    /// For programs: one JSON object, or one per line.
    Json,
}
