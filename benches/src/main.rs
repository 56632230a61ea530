//! Rows of the performance table, ours beside the peer's: `cargo run --release -p benches -- [ROW...] [--json]`; or this
//! tree beside another revision: `... [ROW...] --against REV`.

use benches::against::{self, Against, FEWEST_PAIRS, PAIRS};
use benches::count::Countable;
use benches::rows::{Entry, ROWS, find};
use benches::{cores, count, net, row, rows, sandbox};
use clap::Parser;
use serde::Serialize;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Nothing was measured: an unknown row or revision, or a revision that does not build.
const NOTHING_MEASURED: u8 = 2;

/// Measures rows of the performance table: ours and the peer's, alternately in one run.
///
/// Exit status: 0 if all was measured (and, with --against, no row is worse), 1 if a row could not be measured or is worse,
/// 2 if nothing was measured: an unknown row or revision, or a revision that does not build.
#[derive(Parser)]
struct Arguments {
    /// Rows by name, such as R1; all of them if none is named.
    rows: Vec<String>,
    /// One JSON object a row instead of a table.
    #[arg(long)]
    json: bool,
    /// Measures this tree and that git revision alternately, instead of the peers.
    ///
    /// The revision is built in target/against/COMMIT, which the next run uses again. The ratio is above 1 where this tree is
    /// better. A row is worse if the whole 95 % interval of its ratio lies below 0.97.
    #[arg(long, value_name = "REV")]
    against: Option<String>,
    /// Pairs of samples a row, at least 11: more of them give a narrower interval.
    #[arg(long, value_name = "N", default_value_t = PAIRS, requires = "against", value_parser = pairs)]
    pairs: usize,
    /// Measures one sample of our side of this row alone, warm-up included, and prints it as JSON: what --against runs.
    #[arg(long, value_name = "ROW", conflicts_with_all = ["rows", "against"])]
    once: Option<String>,
    /// Counts the sleeps and system calls of each process for one operation of this row, and prints them as Markdown.
    #[arg(long, value_name = "ROW", conflicts_with_all = ["rows", "against", "once", "json"])]
    count: Option<String>,
    /// The program `xpv` whose rows are measured (N3w, N4 to N8 and U1), instead of this tree's, which is built for them.
    #[arg(long, value_name = "PROGRAM", conflicts_with = "against")]
    xpv: Option<PathBuf>,
}

fn pairs(text: &str) -> Result<usize, String> {
    let pairs = text.parse().map_err(|e| format!("{e}"))?;
    if pairs < FEWEST_PAIRS { Err(format!("at least {FEWEST_PAIRS} are needed")) } else { Ok(pairs) }
}

fn main() -> ExitCode {
    if net::veth::is_inside() {
        return ExitCode::SUCCESS;
    }
    // Before a row binds this thread to a processor.
    let _ = cores::two();
    run(&Arguments::parse()).unwrap_or_else(|why| {
        eprintln!("{why}");
        ExitCode::from(NOTHING_MEASURED)
    })
}

fn run(arguments: &Arguments) -> Result<ExitCode, String> {
    let xpv = arguments.xpv.as_deref();
    if let Some(name) = &arguments.once {
        return Ok(once(find(name)?, xpv));
    }
    if let Some(name) = &arguments.count {
        return Ok(count(count::find(name)?, xpv));
    }
    let all = || Ok(ROWS.iter().collect());
    let named = || arguments.rows.iter().map(|name| find(name)).collect::<Result<Vec<&Entry>, String>>();
    let rows = if arguments.rows.is_empty() { all() } else { named() }?;
    let Some(revision) = &arguments.against else {
        let measure = |entry: &Entry| Ok(entry.measure(xpv)?.into_iter().map(|row| (row, true)).collect());
        return Ok(table(&rows, arguments.json, row::HEAD, measure));
    };
    let against = Against::new(revision, arguments.pairs)?;
    against.build(&rows)?;
    let compare = |entry: &Entry| against.compare(entry).map(|row| vec![(row.clone(), !row.worse)]);
    Ok(table(&rows, arguments.json, against::HEAD, compare))
}

/// Prints the table of what an operation costs.
fn count(countable: Countable, xpv: Option<&Path>) -> ExitCode {
    let inside = |xpv: PathBuf| {
        let text = (countable.count)(&xpv)?;
        // What the sandbox gives is one JSON value a line.
        println!("{}", serde_json::to_string(&text).expect("text"));
        Ok(())
    };
    let outside = |xpv: PathBuf| {
        let texts: Vec<String> = sandbox::run(&["--count", countable.name], &xpv)?;
        print!("{}", texts.concat());
        Ok(())
    };
    let printed =
        rows::program(xpv).and_then(|xpv| if sandbox::is_inside() { inside(xpv) } else { outside(xpv) });
    printed.map_or_else(|why: String| not_measured(countable.name, &why), |()| ExitCode::SUCCESS)
}

fn once(entry: &Entry, xpv: Option<&Path>) -> ExitCode {
    match entry.once(xpv) {
        Ok(sample) => {
            println!("{}", serde_json::to_string(&sample).expect("numbers and text"));
            ExitCode::SUCCESS
        }
        Err(why) => not_measured(entry.name, &why),
    }
}

/// Prints rows as they are measured, of which an entry has several. `measure` also says whether one is as good as it must be.
fn table<R: Display + Serialize>(
    rows: &[&Entry],
    json: bool,
    head: &str,
    measure: impl Fn(&Entry) -> Result<Vec<(R, bool)>, String>,
) -> ExitCode {
    if !json {
        println!("{head}");
    }
    let mut code = ExitCode::SUCCESS;
    for entry in rows {
        let measured = match measure(entry) {
            Ok(measured) => measured,
            Err(why) => {
                code = not_measured(entry.name, &why);
                continue;
            }
        };
        for (row, good) in measured {
            if json {
                println!("{}", serde_json::to_string(&row).expect("numbers and text"));
            } else {
                println!("{row}");
            }
            if !good {
                code = ExitCode::FAILURE;
            }
        }
    }
    code
}

fn not_measured(name: &str, why: &str) -> ExitCode {
    eprintln!("{name}: not measured: {why}");
    ExitCode::FAILURE
}
