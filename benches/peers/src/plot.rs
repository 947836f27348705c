//! Draws latency against throughput of the newest run of a file of results, as one SVG.
//!
//! ```sh
//! cargo run --release --bin plot -- --out ../../docs/peers.svg
//! ```

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;

use clap::Parser;
use peers::Result;
use peers::machine::Machine;
use peers::results::{self, Cell, Line, Op};
use plotters::chart::{ChartBuilder, ChartContext, SeriesLabelPosition};
use plotters::coord::combinators::LogCoord;
use plotters::prelude::*;

const SIZE: (u32, u32) = (960, 640);
const FONT: (&str, i32) = ("sans-serif", 14);

#[derive(Parser)]
#[command(about = "Draws latency against throughput of the newest run")]
struct Args {
    /// What `peers run` has written.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/target/peers.jsonl"))]
    results: PathBuf,
    /// The picture.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/peers.svg"))]
    out: PathBuf,
    /// Of reads rather than writes.
    #[arg(long)]
    reads: bool,
}

type Plane = Cartesian2d<LogCoord<f64>, LogCoord<f64>>;
type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Plane>;

fn throughput(cell: &Cell) -> f64 {
    cell.measured.ops_s.max(1.0)
}

/// In milliseconds; p50 is drawn, p99 stands above it.
fn latencies(cell: &Cell) -> (f64, f64) {
    let ms = |us: u64| us.max(1) as f64 / 1e3;
    (ms(cell.measured.p50_us), ms(cell.measured.p99_us))
}

/// Powers of ten around what is drawn.
fn around(values: impl Iterator<Item = f64> + Clone) -> Range<f64> {
    let low = values.clone().fold(f64::INFINITY, f64::min);
    let high = values.fold(0.0, f64::max);
    10f64.powf(low.log10().floor())..10f64.powf(high.log10().ceil())
}

fn colour(at: usize) -> RGBAColor {
    Palette99::pick(at).to_rgba()
}

fn draw_variant(chart: &mut Chart<'_, '_>, at: usize, cells: &[&Cell]) -> Result<()> {
    let title = cells.first().map_or(String::new(), |cell| cell.title.clone());
    let points: Vec<_> = cells.iter().map(|c| (throughput(c), latencies(c).0)).collect();
    chart
        .draw_series(LineSeries::new(points.clone(), colour(at).stroke_width(2)))?
        .label(title)
        .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour(at).stroke_width(2)));
    chart.draw_series(points.iter().map(|p| Circle::new(*p, 4, colour(at).filled())))?;
    chart.draw_series(cells.iter().map(|cell| {
        let (p50, p99) = latencies(cell);
        let ends = [(throughput(cell), p50), (throughput(cell), p99)];
        PathElement::new(ends, colour(at).mix(0.5).stroke_width(1))
    }))?;
    chart.draw_series(cells.iter().zip(points).map(|(cell, point)| {
        EmptyElement::at(point) + Text::new(cell.clients.to_string(), (6, 4), FONT.into_font())
    }))?;
    Ok(())
}

fn draw(args: &Args, machine: &Machine, cells: &[Cell]) -> Result<()> {
    let x = around(cells.iter().map(throughput));
    let bounds = |cell: &Cell| [latencies(cell).0, latencies(cell).1];
    let y = around(cells.iter().flat_map(bounds));
    let root = SVGBackend::new(&args.out, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let (upper, lower) = root.split_vertically(SIZE.1 - 24);
    let what = if args.reads { "linearizable reads" } else { "writes" };
    let payload = cells.first().map_or(0, |cell| cell.payload);
    let caption = format!("{what} of {payload} B, three nodes; p50, and p99 above it");
    let mut chart = ChartBuilder::on(&upper)
        .caption(caption, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(x.log_scale(), y.log_scale())?;
    chart
        .configure_mesh()
        .x_desc("operations per second (points: so many clients)")
        .y_desc("latency in ms")
        .label_style(FONT)
        .light_line_style(BLACK.mix(0.05))
        .draw()?;
    let mut variants: BTreeMap<&str, Vec<&Cell>> = BTreeMap::new();
    for cell in cells {
        variants.entry(&cell.variant).or_default().push(cell);
    }
    for (at, cells) in variants.values().enumerate() {
        draw_variant(&mut chart, at, cells)?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.9))
        .border_style(BLACK.mix(0.3))
        .label_font(FONT)
        .draw()?;
    let foot = format!(
        "{} cores ({}), Linux {}, {}; {}",
        machine.cores, machine.cpu, machine.kernel, machine.rustc, machine.command
    );
    lower.draw(&Text::new(foot, (12, 4), ("sans-serif", 12).into_font()))?;
    root.present()?;
    Ok(())
}

fn main() -> Result<()> {
    let args = Args::parse();
    let (mut machine, mut cells) = (Machine::default(), Vec::new());
    let wanted = if args.reads { Op::Get } else { Op::Put };
    for line in results::newest(&args.results)? {
        match line {
            Line::Machine(found) => machine = found,
            Line::Cell(cell) if cell.op == wanted && cell.measured.ops_s > 0.0 => cells.push(cell),
            Line::Cell(_) | Line::Ceilings(_) => {}
        }
    }
    if cells.is_empty() {
        return Err(format!("{} holds nothing to draw", args.results.display()).into());
    }
    if let Some(dir) = args.out.parent() {
        std::fs::create_dir_all(dir)?;
    }
    draw(&args, &machine, &cells)?;
    println!("{machine}\n{} points in {}", cells.len(), args.out.display());
    Ok(())
}
