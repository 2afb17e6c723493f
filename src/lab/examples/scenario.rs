//! Runs scenarios without the program: `cargo run -p rayguard-lab --example scenario -- FILE...`.
//!
//! With `--ablate`, all of them without parts of the loop, as one table; with `--runs=200`, each on so many heads
//! that are not quite its own, with `--draw=51` on one of these; with `--log`, the adjustment log on standard error.
//! It builds sooner than the program, which is what one wants while a law or a scenario is being written.
//! `rayguard simulate` does the same and more.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example")]

use rayguard_lab::ablation;
use rayguard_lab::monte_carlo::{monte_carlo, trial};
use rayguard_lab::report;
use rayguard_sim::scenario::Scenario;
use rayguard_sim::trace;
use rayguard_sim::world::{Onlooker, Traces};
use std::error::Error;
use std::path::Path;
use std::sync::Arc;

fn main() -> Result<(), Box<dyn Error>> {
    let (flags, files): (Vec<String>, Vec<String>) =
        std::env::args().skip(1).partition(|arg| arg.starts_with("--"));
    let mut rows = Vec::new();
    for file in files {
        let scenario = Scenario::read(&std::fs::read_to_string(&file)?)?;
        let folder = Path::new(&file).parent().unwrap_or(Path::new("."));
        let mut traces = Traces::new();
        for client in scenario.client.iter().filter(|client| !client.trace.is_empty()) {
            let text = std::fs::read_to_string(folder.join(&client.trace))?;
            traces.insert(client.trace.clone(), Arc::new(trace::read(&text)?));
        }
        if flags.iter().any(|flag| flag == "--ablate") {
            let name = Path::new(&file).file_stem().unwrap_or_default().to_string_lossy().into_owned();
            rows.push(ablation::ablate(&name, &scenario, scenario.seed, &traces)?);
            continue;
        }
        if let Some(runs) = flags.iter().find_map(|flag| flag.strip_prefix("--runs=")) {
            let rate = monte_carlo(&scenario, scenario.seed, runs.parse()?, &traces, &|_| ())?;
            print!("{file}\n{}", rate.describe());
            continue;
        }
        let mut log = String::new();
        let onlooker = Onlooker { adjustment_log: Some(&mut log), ..Onlooker::default() };
        if let Some(number) = flags.iter().find_map(|flag| flag.strip_prefix("--draw=")) {
            let trial = trial(&scenario, scenario.seed, number.parse()?, &traces, onlooker)?;
            println!("{file}: {}", trial.draw.describe());
            for check in trial.checks {
                println!("     {} {} = {:?}", if check.met { '+' } else { '-' }, check.name, check.value);
            }
            if flags.iter().any(|flag| flag == "--log") {
                eprint!("{log}");
            }
            continue;
        }
        let seed = flags
            .iter()
            .find_map(|flag| flag.strip_prefix("--seed="))
            .map_or(Ok(scenario.seed), str::parse)?;
        let answer = report::answer(&file, &scenario, seed, &traces, onlooker)?;
        if flags.iter().any(|flag| flag == "--log") {
            eprint!("{log}");
        }
        print!("{}", report::table(&answer));
    }
    if !rows.is_empty() {
        print!("{}", ablation::table(&rows));
    }
    Ok(())
}
