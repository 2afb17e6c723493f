//! `rayguard clients`: who asks most, and what becomes of it.

use crate::admin::clients::{ClientRow, Clients};
use crate::admin::schema::State;
use crate::cli::client::{Client, ClientError, Reach, json, length, table};
use crate::cli::format::Format;
use crate::core::event::{number, printable};
use crate::core::time::WallMs;
use std::io::{self, Write};

/// Shows which clients sent most requests in the last minutes.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// How many.
    #[arg(long, short = 'n', default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub number: u16,
    /// Address of the running rayguard.
    #[command(flatten)]
    pub reach: Reach,
}

/// Carries out the command.
pub async fn run(args: &Args, out: &mut dyn Write) -> Result<(), ClientError> {
    let client = Client::new(&args.reach)?;
    let clients: Clients = client.get(&format!("/api/v1/clients?limit={}", args.number)).await?;
    if args.reach.format == Format::Json {
        return json(out, &clients);
    }
    let state: State = client.get("/api/v1/state").await?;
    writeln!(out, "{}", title(&clients, state.time))?;
    Ok(show(&clients, "", out)?)
}

/// What the table shows.
#[must_use]
pub fn title(clients: &Clients, now: WallMs) -> String {
    let ago = now.0.saturating_sub(clients.since.0) as f64 / 1e3;
    format!(
        "Top clients (last {}; by cost to Ray and requests; in parentheses: shed in shadow mode only)",
        length(ago)
    )
}

/// Writes the table, one line per client.
pub fn show(clients: &Clients, indent: &str, out: &mut dyn Write) -> io::Result<()> {
    if clients.clients.is_empty() {
        return writeln!(out, "{indent}no requests");
    }
    let header = [
        "CLIENT",
        "CREDENTIAL",
        "REQUESTS",
        "ADMITTED",
        "SHED",
        "FAILED",
        "SHARED",
        "CLIENT GONE",
        "TIME AT RAY",
        "CLIENT WAIT",
        "STANDING",
        "ID",
        "TOP ROUTE",
    ];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    rows.extend(clients.clients.iter().map(row));
    for row in &mut rows {
        row[0].insert_str(0, indent);
    }
    table(out, &(2..10), &rows)
}

fn row(client: &ClientRow) -> Vec<String> {
    let counts = &client.counts;
    let credential = match (&client.credential, client.credential_addresses) {
        (None, _) => "-".to_owned(),
        (Some(digest), addresses @ 2..) => format!("{} ({addresses} addresses)", printable(digest)),
        (Some(digest), _) => printable(digest),
    };
    let shed = match (counts.shed, counts.would_shed) {
        (shed, 0) => shed.to_string(),
        (shed, would) => format!("{shed} ({would})"),
    };
    let mostly = client.classes.first().map_or_else(String::new, |most| {
        let route = most.routes.first().map_or_else(String::new, |route| format!(" {}", printable(route)));
        format!("{}{route}", printable(&most.class))
    });
    vec![
        client.address.clone().unwrap_or_else(|| client.client.clone()),
        credential,
        counts.asked.to_string(),
        counts.admitted.to_string(),
        shed,
        counts.failed.to_string(),
        counts.shared.to_string(),
        counts.left.to_string(),
        format!("{} s", number(counts.work_s)),
        format!("{} s", number(client.client_wait_s)),
        client.standing.as_ref().map_or_else(|| "-".to_owned(), |standing| printable(&standing.says)),
        // As the adjustment log and `rayguard explain` have it.
        client.client.clone(),
        mostly,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::clients::{ClientClass, StandingView};
    use crate::core::admission::history::Standing;
    use crate::core::usage::Counts;

    #[test]
    fn a_client_stands_on_one_line_by_address_or_by_digest() {
        let counts = Counts { asked: 40, admitted: 30, shed: 10, work_s: 1.5, ..Counts::default() };
        let class = ClientClass { class: "state-heavy".into(), counts, routes: vec!["/api/v0/tasks".into()] };
        let open = ClientRow {
            client: "00000000000000aa".into(),
            address: Some("10.0.0.7".into()),
            credential: Some("3f2a9b01".into()),
            credential_addresses: 64,
            counts,
            client_wait_s: 12.5,
            standing: Some(StandingView::of(Standing::Stranger, 214)),
            classes: vec![class],
        };
        let closed = ClientRow { address: None, credential: None, ..open.clone() };
        let mut out = Vec::new();
        show(&Clients { since: WallMs(0), clients: vec![open, closed] }, "  ", &mut out).unwrap();
        let out = String::from_utf8(out).unwrap();
        let lines: Vec<&str> = out.lines().collect();
        assert!(lines[1].starts_with("  10.0.0.7 "), "{out}");
        assert!(
            lines[1].contains("3f2a9b01 (64 addresses)")
                && lines[1].ends_with("00000000000000aa  state-heavy /api/v0/tasks"),
            "the digest of `explain` is beside the address: {out}"
        );
        assert!(lines[1].contains("12.5 s") && lines[1].contains("stranger; one of 214"), "{out}");
        assert!(lines[2].starts_with("  00000000000000aa  -"), "{out}");
    }
}
