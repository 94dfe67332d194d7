//! Charts, as SVG.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;

use crate::compare::Rounds;
use crate::load::Sample;
use crate::peer::Who;

const SIZE: (u32, u32) = (860, 420);

fn colour(who: Who) -> RGBColor {
    match who {
        Who::Casemate => RGBColor(200, 60, 30),
        Who::Workerd => RGBColor(240, 150, 30),
        Who::Deno => RGBColor(30, 110, 180),
        Who::Floor => RGBColor(120, 120, 120),
    }
}

/// Converts an error of plotters, which borrows from the drawing, into an owned error.
fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("drawing: {error}")
}

/// Names of the axes: horizontal, vertical.
type Axes<'a> = (&'a str, &'a str);
/// A line: its name, its colour and its points.
type Line<'a> = (&'a str, RGBColor, &'a [(f64, f64)]);

/// Line chart with one line a runtime; both axes are logarithmic.
pub(crate) fn lines(
    path: &Path,
    title: &str,
    axes: Axes<'_>,
    series: &[(Who, Vec<(f64, f64)>)],
) -> Result<()> {
    let points = || series.iter().flat_map(|(_, points)| points);
    let least = |of: fn(&(f64, f64)) -> f64| points().map(of).fold(f64::INFINITY, f64::min);
    let most = |of: fn(&(f64, f64)) -> f64| points().map(of).fold(0.0, f64::max);
    let across = (least(|point| point.0)..most(|point| point.0) * 1.05).log_scale();
    let up = (least(|point| point.1) * 0.8..most(|point| point.1) * 1.25).log_scale();
    let lines = series
        .iter()
        .map(|(who, points)| (who.name(), colour(*who), &points[..]));
    draw(path, title, axes, (across, up), 4, lines)
}

/// Step chart of a share over time; the time axis is logarithmic.
pub(crate) fn steps(
    path: &Path,
    title: &str,
    axes: Axes<'_>,
    series: &[(&str, Vec<(f64, f64)>)],
) -> Result<()> {
    let points = || series.iter().flat_map(|(_, points)| points);
    let least = points().map(|point| point.0).fold(f64::INFINITY, f64::min);
    let most = points().map(|point| point.0).fold(0.0, f64::max);
    let across = (least * 0.8..most * 1.25).log_scale();
    let colours = [colour(Who::Casemate), colour(Who::Deno)];
    let lines = series
        .iter()
        .zip(colours)
        .map(|((name, points), colour)| (*name, colour, &points[..]));
    draw(path, title, axes, (across, 0.0..100.0), 0, lines)
}

/// Draws lines over these ranges, with points of this size.
fn draw<'a, X, Y>(
    path: &Path,
    title: &str,
    (across, up): Axes<'_>,
    (x, y): (X, Y),
    point_size: u32,
    lines: impl Iterator<Item = Line<'a>>,
) -> Result<()>
where
    X: AsRangedCoord<Value = f64>,
    Y: AsRangedCoord<Value = f64>,
    X::CoordDescType: ValueFormatter<f64>,
    Y::CoordDescType: ValueFormatter<f64>,
{
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE).map_err(failed)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(70)
        .build_cartesian_2d(x, y)
        .map_err(failed)?;
    chart
        .configure_mesh()
        .x_desc(across)
        .y_desc(up)
        .draw()
        .map_err(failed)?;
    for (name, colour, points) in lines {
        let line = LineSeries::new(points.iter().copied(), colour.stroke_width(2));
        chart
            .draw_series(line.point_size(point_size))
            .map_err(failed)?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK)
        .draw()
        .map_err(failed)?;
    root.present().map_err(failed)
}

type Figure = fn(&Sample) -> f64;

/// Latency by percentile, at a fixed rate.
pub(crate) fn latency(rounds: &Rounds, per_second: u32, folder: &Path) -> Result<String> {
    let name = "latency.svg";
    // The horizontal axis is the inverse of the share of slower requests: one in 2, in 10, in 100,
    // in 1,000.
    let figures: [(f64, Figure); 4] = [
        (2.0, |sample| sample.p50_us),
        (10.0, |sample| sample.p90_us),
        (100.0, |sample| sample.p99_us),
        (1000.0, |sample| sample.p999_us),
    ];
    let series: Vec<_> = rounds
        .who()
        .map(|who| {
            let points = figures
                .iter()
                .filter_map(|(one_in, figure)| Some((*one_in, rounds.of(who, figure)?.median)));
            (who, points.collect())
        })
        .collect();
    let title = format!("Latency at {per_second} requests a second, 64 connections");
    let axes = ("one request in so many is slower", "microseconds");
    lines(&folder.join(name), &title, axes, &series)?;
    Ok(name.to_owned())
}
