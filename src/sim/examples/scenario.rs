//! Runs scenarios with the simulator alone: `cargo run -p rayguard-sim --example scenario -- FILE...`.
//!
//! It builds without the proxy, which is what one wants while a law or a scenario is being written.
//! `rayguard simulate` does the same and more.
#![allow(clippy::print_stdout, reason = "an example")]

use rayguard_sim::report;
use rayguard_sim::scenario::Scenario;
use rayguard_sim::trace;
use rayguard_sim::world::{Onlooker, Traces};
use std::error::Error;
use std::path::Path;
use std::sync::Arc;

fn main() -> Result<(), Box<dyn Error>> {
    for file in std::env::args().skip(1) {
        let scenario = Scenario::read(&std::fs::read_to_string(&file)?)?;
        let folder = Path::new(&file).parent().unwrap_or(Path::new("."));
        let mut traces = Traces::new();
        for client in scenario.client.iter().filter(|client| !client.trace.is_empty()) {
            let text = std::fs::read_to_string(folder.join(&client.trace))?;
            traces.insert(client.trace.clone(), Arc::new(trace::read(&text)?));
        }
        let answer = report::answer(&file, &scenario, scenario.seed, &traces, Onlooker::default())?;
        print!("{}", report::table(&answer));
    }
    Ok(())
}
