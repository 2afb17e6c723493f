//! `rayguard completions` and `rayguard man`: made from the command line's own definitions.

use std::io::{self, Write};

/// Prints a completion script for a shell.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// The shell: `rayguard completions bash > /etc/bash_completion.d/rayguard`.
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

/// Prints the manual page.
#[derive(clap::Args, Clone, Debug)]
pub struct ManArgs {
    /// Command, such as `status`. Default: the whole manual.
    pub command: Option<String>,
}

/// Carries out `completions`.
pub fn run(args: &Args, mut command: clap::Command, out: &mut dyn Write) -> io::Result<u8> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "rayguard", &mut script);
    out.write_all(&script)?;
    Ok(0)
}

/// Carries out `man`: `rayguard man | man -l -`.
pub fn man(args: &ManArgs, mut whole: clap::Command, out: &mut dyn Write) -> io::Result<u8> {
    whole.build();
    let page = match &args.command {
        None => Some(&whole),
        Some(name) => whole.find_subcommand(name),
    };
    let Some(page) = page else {
        eprintln!("rayguard: unknown command; `rayguard help` lists all commands");
        return Ok(2);
    };
    clap_mangen::Man::new(page.clone()).render(out)?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::command;

    #[test]
    fn the_command_line_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn completions_and_pages_name_the_commands() {
        for shell in [clap_complete::Shell::Bash, clap_complete::Shell::Zsh, clap_complete::Shell::Fish] {
            let mut script = Vec::new();
            run(&Args { shell }, command(), &mut script).unwrap();
            let script = String::from_utf8(script).unwrap();
            assert!(
                script.contains("unfreeze") && script.contains("job-list"),
                "commands and classes: {shell}"
            );
        }
        let mut page = Vec::new();
        assert_eq!(man(&ManArgs { command: None }, command(), &mut page).unwrap(), 0);
        let page = String::from_utf8(page).unwrap();
        assert!(page.starts_with(".ie") && page.contains("unfreeze"), "{page}");
        let mut page = Vec::new();
        assert_eq!(man(&ManArgs { command: Some("pin".into()) }, command(), &mut page).unwrap(), 0);
        assert!(String::from_utf8(page).unwrap().contains("LIMIT=VALUE"));
        assert_eq!(
            man(&ManArgs { command: Some("nonsense".into()) }, command(), &mut Vec::new()).unwrap(),
            2
        );
    }
}
