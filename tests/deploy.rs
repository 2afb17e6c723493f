//! What stands under `config/deploy/` is held to the code: its configurations are sound, its
//! alerts lead to sections of the runbook, and its copies are copies.

use std::collections::BTreeSet;

use rayguard::config::{Overrides, Settings, parse};
use rayguard::core::alert::Alert;

const RULES: &str = include_str!("../config/deploy/prometheus/rayguard.rules.yml");
const RULES_OF_OPERATOR: &str = include_str!("../config/deploy/kubernetes/prometheusrule.yaml");
const RUNBOOK: &str = include_str!("../config/deploy/RUNBOOK.md");
const DASHBOARD: &str = include_str!("../config/deploy/grafana/rayguard.json");
const METRICS: &str = include_str!("../config/deploy/METRICS.md");
const CLUSTER: &str = include_str!("../config/deploy/kubernetes/raycluster.yaml");
const SERVE: &str = include_str!("../config/deploy/kubernetes/serve.yaml");
const COMPOSE: &str = include_str!("../config/deploy/compose/rayguard.toml");

fn sound(text: &str) -> Settings {
    parse(text, "deploy", &Overrides::default()).unwrap_or_else(|problems| panic!("{problems}"))
}

/// The block behind `rayguard.toml: |` of a ConfigMap.
fn embedded(manifest: &str) -> String {
    let mut lines = manifest.lines().skip_while(|line| line.trim() != "rayguard.toml: |").skip(1).peekable();
    let indent = lines.peek().map_or(0, |line| line.len() - line.trim_start().len());
    let block = lines.take_while(|line| line.is_empty() || line.starts_with(&" ".repeat(indent)));
    block.map(|line| line.get(indent..).unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

fn words<'a>(text: &'a str, start: &'a str) -> BTreeSet<&'a str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with(start))
        .map(|word| word.trim_end_matches("_bucket"))
        .collect()
}

#[test]
fn every_configuration_that_is_shipped_is_sound() {
    let cluster = sound(&embedded(CLUSTER));
    assert_eq!(cluster.listeners.len(), 2);
    assert_eq!(cluster.metrics.targets.len(), 3);
    assert!(cluster.admin.unwrap().token.is_some(), "the pod's address can be reached by others");
    let serve = sound(&embedded(SERVE));
    assert_eq!(serve.routes.len(), 1);
    let compose = sound(COMPOSE);
    assert_eq!(compose.listeners.len(), 2);
}

#[test]
fn the_operators_rules_are_the_rules() {
    let groups = |text: &str| -> Vec<String> {
        let lines = text.lines().skip_while(|line| line.trim() != "groups:");
        lines.map(|line| line.trim_end().to_owned()).collect()
    };
    let outdented: Vec<String> = groups(RULES_OF_OPERATOR)
        .iter()
        .map(|line| line.strip_prefix("  ").unwrap_or(line).to_owned())
        .collect();
    assert_eq!(outdented, groups(RULES));
}

#[test]
fn every_alert_leads_to_a_section_of_the_runbook() {
    let sections: BTreeSet<&str> = RUNBOOK.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    for alert in Alert::ALL {
        let anchor = format!("alert-{}", alert.label());
        assert!(sections.contains(anchor.as_str()), "{anchor}");
    }
    let alerts = RULES.matches("- alert: ").count();
    let anchors: Vec<&str> =
        RULES.lines().filter_map(|line| line.split_once("RUNBOOK.md#").map(|(_, anchor)| anchor)).collect();
    assert_eq!(anchors.len(), alerts, "each alert has a runbook_url");
    for anchor in anchors {
        assert!(sections.contains(anchor), "{anchor}");
    }
}

#[test]
fn alertmanager_hears_one_name_for_one_cause() {
    let mut names = std::collections::BTreeMap::<&str, BTreeSet<&str>>::new();
    let mut name = "";
    for line in RULES.lines() {
        if let Some((_, rule)) = line.split_once("- alert: ") {
            name = rule;
        } else if let Some((_, label)) = line.split_once("RUNBOOK.md#alert-") {
            names.entry(label).or_default().insert(name);
        }
    }
    for alert in Alert::ALL {
        let rules = names.get(alert.label());
        assert!(rules.is_none_or(|rules| rules.contains(alert.name())), "{alert:?}: {rules:?}");
    }
}

#[test]
fn rules_and_dashboard_name_metrics_that_exist() {
    // That the documented ones are those there are, tests/admin/metrics.rs shows.
    let rows = METRICS.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let documented: Vec<&str> = rows.collect();
    for (file, text) in [("rules", RULES), ("dashboard", DASHBOARD)] {
        let named = words(text, "rayguard_");
        assert!(named.len() > 8, "{file}: {named:?}");
        for metric in named {
            assert!(documented.contains(&metric), "{file}: {metric}");
        }
    }
}

#[test]
fn the_dashboard_is_json_that_imports_without_edits() {
    let dashboard: serde_json::Value = serde_json::from_str(DASHBOARD).unwrap();
    let variables: Vec<&str> = dashboard["templating"]["list"]
        .as_array()
        .unwrap()
        .iter()
        .map(|variable| variable["name"].as_str().unwrap())
        .collect();
    assert_eq!(variables, ["datasource", "cluster", "instance", "class"]);
    for panel in dashboard["panels"].as_array().unwrap() {
        if panel["type"] != "row" {
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{}", panel["title"]);
        }
    }
}
