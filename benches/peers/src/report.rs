//! Figures as lines while they come, and as a Markdown table in the end.

use std::fmt::Write as _;

use peers::results::{CeilingRow, Ceilings, Cell, Op};

use crate::run::Found;
use crate::variants::Variant;

/// Stands above the rows of a variant.
pub const HEAD: &str = "op  clients      ops/s   p50 us   p99 us  p99.9 us   max us  errors  \
                        CPU us/op: leader, others  peak MiB";

/// A window that ends later than so has measured something else as well.
const LATE_MS: u64 = 50;

/// One cell as a line.
pub fn row(cell: &Cell) -> String {
    let m = &cell.measured;
    let joined = |values: &[f64], digits: usize| {
        values.iter().map(|v| format!("{v:.digits$}")).collect::<Vec<_>>().join(" / ")
    };
    let mut line = format!(
        "{} {:>8} {:>10.0} {:>8} {:>8} {:>9} {:>8} {:>7}  {:>25}  {}",
        cell.op,
        cell.clients,
        m.ops_s,
        m.p50_us,
        m.p99_us,
        m.p999_us,
        m.max_us,
        m.errors,
        joined(&m.cpu_us_per_op, 1),
        joined(&m.peak_mib, 0),
    );
    for remark in remarks(cell) {
        let _ = write!(line, "\n    {remark}");
    }
    line
}

/// Why the figures of a cell are not to be taken as they are.
fn remarks(cell: &Cell) -> Vec<String> {
    let m = &cell.measured;
    let mut remarks = Vec::new();
    if cell.elected {
        remarks.push("ELECTED: leader or term changed meanwhile".to_owned());
    }
    if m.late_ms > LATE_MS {
        remarks.push(format!(
            "LATE: the end was noticed {} ms late; was the machine halted?",
            m.late_ms
        ));
    }
    if m.errors > 0 {
        remarks.push(format!("ERRORS: {}, the first: {}", m.errors, m.first_error));
    }
    remarks
}

/// A rate with three digits, as in a table to be read.
fn rate(ops_s: f64) -> String {
    let digits = |value: f64| usize::from(value < 10.0);
    match ops_s {
        v if v >= 999_500.0 => format!("{:.2} M", v / 1e6),
        v if v >= 1000.0 => format!("{:.*} k", digits(v / 1e3), v / 1e3),
        v => format!("{v:.0}"),
    }
}

fn ratio(of: f64, to: f64) -> String {
    match of / to {
        r if !r.is_finite() => "-".to_owned(),
        r if r >= 9.95 => format!("{r:.0}x"),
        r => format!("{r:.1}x"),
    }
}

impl Found {
    fn cell(&self, variant: Variant, op: Op, clients: usize) -> Option<&Cell> {
        let name = variant.to_string();
        let is = |c: &&Cell| c.variant == name && c.op == op && c.clients == clients;
        self.cells.iter().find(is)
    }

    fn ops_s(&self, variant: Variant, op: Op, clients: usize) -> Option<f64> {
        self.cell(variant, op, clients).map(|cell| cell.measured.ops_s)
    }

    fn ceiling(&self, clients: usize) -> Option<&CeilingRow> {
        self.ceilings.rows.iter().find(|row| row.clients == clients)
    }
}

/// A row of a Markdown table; None, with nothing in any column, is left out.
fn line(
    label: &str,
    clients: &[usize],
    column: impl Fn(usize) -> Option<String>,
) -> Option<String> {
    let columns: Vec<_> = clients.iter().map(|n| column(*n)).collect();
    columns.iter().any(Option::is_some).then(|| {
        let columns: Vec<_> = columns.into_iter().map(|c| c.unwrap_or("-".into())).collect();
        format!("| {label} | {} |", columns.join(" | "))
    })
}

fn heading(clients: &[usize]) -> Vec<String> {
    let numbers: Vec<_> = clients.iter().map(usize::to_string).collect();
    let dashes = vec!["---"; clients.len() + 1].join(" | ");
    vec![format!("| | {} clients |", numbers.join(" | ")), format!("| {dashes} |")]
}

/// What is compared with what, and how it is called.
const PAIRS: [(Variant, Variant, Op, &str); 6] = [
    (Variant::RaftlineDurable, Variant::Rmqtt, Op::Put, "our log *durable*"),
    (Variant::RaftlineMemory, Variant::Rmqtt, Op::Put, "our log in memory"),
    (Variant::RaftlineMemory, Variant::Openraft, Op::Put, "our log in memory"),
    (Variant::RaftlineMemory, Variant::Omnipaxos, Op::Put, "our log in memory"),
    (Variant::RaftlineDurable, Variant::Etcd, Op::Put, "our log durable"),
    (Variant::RaftlineMemory, Variant::Openraft, Op::Get, "linearizable reads"),
];

/// Reads of a durable one against those of a durable one.
const DURABLE_READS: (Variant, Variant, Op, &str) =
    (Variant::RaftlineDurable, Variant::Etcd, Op::Get, "linearizable reads");

/// The whole comparison.
pub fn table(clients: &[usize], found: &Found) -> String {
    let mut lines = heading(clients);
    let ours = [
        (Variant::RaftlineMemory, Op::Put, "memory log, writes/s"),
        (Variant::RaftlineDurable, Op::Put, "durable (fsync), writes/s"),
        (Variant::RaftlineDurable, Op::Get, "linearizable reads/s"),
    ];
    for (variant, op, label) in ours {
        lines.extend(line(label, clients, |n| found.ops_s(variant, op, n).map(rate)));
    }
    for (ours, theirs, op, what) in PAIRS.into_iter().chain([DURABLE_READS]) {
        let rates: Vec<_> =
            clients.iter().map(|n| found.ops_s(theirs, op, *n).map_or("-".into(), rate)).collect();
        let title = found.cells.iter().find(|c| c.variant == theirs.to_string());
        let title = title.map_or("", |cell| &cell.title);
        let label = format!("ratio to {title} ({}), {what}", rates.join(" / "));
        lines.extend(line(&label, clients, |n| {
            Some(ratio(found.ops_s(ours, op, n)?, found.ops_s(theirs, op, n)?))
        }));
    }
    lines.extend(ceiling_lines(clients, &found.ceilings));
    let fraction = |variant| {
        move |n| {
            let percent =
                100.0 * found.ops_s(variant, Op::Put, n)? / found.ceiling(n)?.engine_ops_s;
            Some(format!("{percent:.0} %"))
        }
    };
    let memory = "memory log, of the bare engine";
    lines.extend(line(memory, clients, fraction(Variant::RaftlineMemory)));
    let durable = "durable, of the bare engine";
    lines.extend(line(durable, clients, fraction(Variant::RaftlineDurable)));
    let mut out = lines.join("\n");
    out.push_str("\n\n");
    out.push_str(&notes(found));
    out
}

fn ceiling_lines(clients: &[usize], ceilings: &Ceilings) -> Vec<String> {
    let row = |n| ceilings.rows.iter().find(|row| row.clients == n);
    let echo = |n| row(n).map(|row| rate(row.echo.ops_s));
    let echo_p50 = |n| row(n).map(|row| row.echo.p50_us.to_string());
    let engine = |n| row(n).map(|row| rate(row.engine_ops_s));
    [
        line("ceiling: tonic stream echo, messages/s", clients, echo),
        line("ceiling: the same, p50 in us", clients, echo_p50),
        line("ceiling: bare RawNode, three in one thread, writes/s", clients, engine),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn sync_line(ceilings: &Ceilings) -> String {
    format!(
        "fdatasync p50: {} us alone, {} us with three files at once.\n",
        ceilings.sync_alone_us, ceilings.sync_of_three_us
    )
}

/// The ceilings alone.
pub fn ceilings(clients: &[usize], ceilings: &Ceilings) -> String {
    let mut lines = heading(clients);
    lines.extend(ceiling_lines(clients, ceilings));
    format!("{}\n\n{}", lines.join("\n"), sync_line(ceilings))
}

/// What does not fit into a table.
fn notes(found: &Found) -> String {
    let mut out = sync_line(&found.ceilings);
    let alone = found.cell(Variant::RaftlineDurable, Op::Put, 1);
    if let (Some(cell), Some(row)) = (alone, found.ceiling(1)) {
        let floor = found.ceilings.sync_of_three_us + row.echo.p50_us;
        let _ = writeln!(
            out,
            "One client, durable: p50 {} us = {:.2} x (fdatasync of three + stream echo).",
            cell.measured.p50_us,
            cell.measured.p50_us as f64 / floor.max(1) as f64
        );
    }
    for cell in &found.cells {
        for remark in remarks(cell) {
            let _ =
                writeln!(out, "{} {}, {} clients: {remark}", cell.variant, cell.op, cell.clients);
        }
    }
    for (variant, why) in &found.missing {
        let _ = writeln!(out, "SKIPPED: {variant}: {why}");
    }
    out
}
