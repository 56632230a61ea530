//! Rows of the performance table, ours beside the peer's: `cargo run --release -p benches -- [ROW...] [--json]`.

use benches::row::{HEAD, Row};
use benches::{block, net, ring, xen};
use clap::Parser;
use std::process::ExitCode;

type Measure = fn() -> Result<Row, String>;

/// Every row there is, in the table's order.
const ROWS: &[(&str, Measure)] = &[
    ("R1", ring::r1),
    ("R2", ring::r2),
    ("R3", ring::r3),
    ("B1", block::b1),
    ("B2", block::b2),
    ("B4n", block::b4_nbd),
    ("N1", net::n1),
    ("N1g", net::n1_guest),
    ("N2", net::n2),
    ("X1", xen::x1),
    ("X1q", xen::x1_queued),
    ("X2", xen::x2),
    ("X2s", xen::x2_single),
    ("X2l", xen::x2_large),
];

/// Measures rows of the performance table: ours and the peer's by turns in one run.
#[derive(Parser)]
struct Arguments {
    /// Rows by name, such as R1; all of them if none is named.
    rows: Vec<String>,
    /// One JSON object a row instead of a table.
    #[arg(long)]
    json: bool,
}

fn chosen(names: &[String]) -> Result<Vec<&'static (&'static str, Measure)>, String> {
    if names.is_empty() {
        return Ok(ROWS.iter().collect());
    }
    let find = |name: &String| {
        let row = ROWS.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        row.ok_or_else(|| {
            format!("no row {name}; rows: {}", ROWS.iter().map(|r| r.0).collect::<Vec<_>>().join(" "))
        })
    };
    names.iter().map(find).collect()
}

fn main() -> ExitCode {
    if net::veth::is_inside() {
        return ExitCode::SUCCESS;
    }
    let arguments = Arguments::parse();
    let rows = match chosen(&arguments.rows) {
        Ok(rows) => rows,
        Err(why) => {
            eprintln!("{why}");
            return ExitCode::from(2);
        }
    };
    if !arguments.json {
        println!("{HEAD}");
    }
    let mut code = ExitCode::SUCCESS;
    for (name, measure) in rows {
        match measure() {
            Ok(row) if arguments.json => {
                println!("{}", serde_json::to_string(&row).expect("numbers and text"))
            }
            Ok(row) => println!("{row}"),
            Err(why) => {
                eprintln!("{name}: not measured: {why}");
                code = ExitCode::FAILURE;
            }
        }
    }
    code
}
