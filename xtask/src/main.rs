//! Checks of the workspace that no compiler makes: `cargo xtask floors`, `cargo xtask tidy`.

mod floors;
mod tidy;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
enum Command {
    /// Dependencies between crates go strictly down.
    Floors,
    /// File and function sizes, module names, pure modules, words that promise work.
    Tidy,
}

fn main() -> ExitCode {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let found = match Command::parse() {
        Command::Floors => floors::check(&root),
        Command::Tidy => tidy::check(&root),
    };
    match found {
        Ok(problems) if problems.is_empty() => ExitCode::SUCCESS,
        Ok(problems) => {
            for problem in &problems {
                eprintln!("{problem}");
            }
            eprintln!("{} problems", problems.len());
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
