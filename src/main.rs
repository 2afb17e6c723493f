//! The `rayguard` program. Everything is in the library.

fn main() -> std::process::ExitCode {
    rayguard::cli::main()
}
