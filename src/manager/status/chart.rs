//! Charts as SVG: step lines over time with one vertical axis and a legend, without scripts or style sheets.

use std::fmt::Write;

use crate::markup::escape;

/// The width of a chart, in SVG units.
pub const WIDTH: f64 = 600.0;
/// The height of a chart, in SVG units.
pub const HEIGHT: f64 = 200.0;
/// The margins of the area between the axes.
const LEFT: f64 = 44.0;
const RIGHT: f64 = 8.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = 24.0;
/// More points than this are merged, because no screen shows them separately.
const MAX_POINTS: usize = 800;

/// One line of a chart.
pub struct Series<'a> {
    /// The name in the legend.
    pub name: &'a str,
    /// The colour of the line.
    pub colour: &'a str,
    /// The values at equal intervals.
    pub values: &'a [u32],
    /// Whether the area below the line is filled.
    pub filled: bool,
}

impl<'a> Series<'a> {
    /// The jobs that run.
    pub fn running_jobs(values: &'a [u32]) -> Self {
        Self { name: "running jobs", colour: "#2f80c8", values, filled: true }
    }

    /// The jobs that wait for an agent.
    pub fn waiting_jobs(values: &'a [u32]) -> Self {
        Self { name: "waiting jobs", colour: "#d9822b", values, filled: false }
    }

    /// The instances with a job.
    pub fn busy_instances(values: &'a [u32]) -> Self {
        Self { name: "busy instances", colour: "#3d9a50", values, filled: true }
    }

    /// The instances without a job.
    pub fn idle_instances(values: &'a [u32]) -> Self {
        Self { name: "idle instances", colour: "#9a6bc4", values, filled: false }
    }
}

/// A label below the time axis, at a fraction (0 to 1) of the width.
pub type Tick = (f64, String);

/// The size of the area between the axes.
const PLOT_WIDTH: f64 = WIDTH - LEFT - RIGHT;
const PLOT_HEIGHT: f64 = HEIGHT - TOP - BOTTOM;

/// Draws several lines in one chart. `title` is for screen readers.
pub fn draw(title: &str, series: &[Series<'_>], ticks: &[Tick]) -> String {
    let merged: Vec<Vec<u32>> = series.iter().map(|series| merge(series.values)).collect();
    let highest = merged.iter().flatten().copied().max().unwrap_or(0);
    let axis_end = axis_end(highest);
    let mut svg = String::new();
    // Writing to a string cannot fail, here and below.
    let _ = write!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" font-family=\"sans-serif\" \
         font-size=\"11\"><title>{}</title>",
        escape(title)
    );
    draw_grid(&mut svg, axis_end);
    draw_ticks(&mut svg, ticks);
    for (series, values) in series.iter().zip(&merged) {
        draw_line(&mut svg, series, values, axis_end);
    }
    draw_legend(&mut svg, series);
    svg.push_str("</svg>");
    svg
}

/// The vertical position of a value.
fn y_of(value: u32, axis_end: u32) -> f64 {
    TOP + PLOT_HEIGHT * (1.0 - f64::from(value) / f64::from(axis_end))
}

/// Draws horizontal lines with the labels of the vertical axis.
fn draw_grid(svg: &mut String, axis_end: u32) {
    for step in 0..=4 {
        let value = axis_end * step / 4;
        if step > 0 && value == axis_end * (step - 1) / 4 {
            continue;
        }
        let at = y_of(value, axis_end);
        let _ = write!(
            svg,
            "<line x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{:.1}\" y2=\"{at:.1}\" stroke=\"#8884\"/><text x=\"{:.1}\" y=\"{:.1}\" \
             text-anchor=\"end\" fill=\"#888\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            at + 4.0,
            label(value, axis_end)
        );
    }
}

/// Draws the labels of the time axis.
fn draw_ticks(svg: &mut String, ticks: &[Tick]) {
    for (part, text) in ticks {
        let at = LEFT + PLOT_WIDTH * part;
        let anchor = match *part {
            part if part < 0.03 => "start",
            part if part > 0.97 => "end",
            _ => "middle",
        };
        let _ = write!(
            svg,
            "<text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\" fill=\"#888\">{}</text>",
            HEIGHT - 6.0,
            escape(text)
        );
    }
}

fn draw_line(svg: &mut String, series: &Series<'_>, values: &[u32], axis_end: u32) {
    let path = steps(values, PLOT_WIDTH, |value| y_of(value, axis_end));
    if series.filled && !path.is_empty() {
        let base = y_of(0, axis_end);
        let _ = write!(
            svg,
            "<path d=\"{path} V{base:.1} H{LEFT:.1} Z\" fill=\"{}\" fill-opacity=\"0.25\" stroke=\"none\"/>",
            series.colour
        );
    }
    let _ = write!(svg, "<path d=\"{path}\" fill=\"none\" stroke=\"{}\" stroke-width=\"1.5\"/>", series.colour);
}

fn draw_legend(svg: &mut String, series: &[Series<'_>]) {
    let mut at = LEFT;
    for series in series {
        let _ = write!(
            svg,
            "<rect x=\"{at:.1}\" y=\"8\" width=\"10\" height=\"10\" fill=\"{}\"/><text x=\"{:.1}\" y=\"17\" fill=\"#888\">{}</text>",
            series.colour,
            at + 14.0,
            escape(series.name)
        );
        at += 30.0 + 6.5 * series.name.chars().count() as f64;
    }
}

/// The path of a line that keeps each value until the next one. Points with an unchanged value are left out.
fn steps(values: &[u32], width: f64, y: impl Fn(u32) -> f64) -> String {
    let Some(first) = values.first() else { return String::new() };
    let distance = width / values.len() as f64;
    let mut path = format!("M{LEFT:.1} {:.1}", y(*first));
    for (at, pair) in values.windows(2).enumerate() {
        if pair[0] != pair[1] {
            let _ = write!(path, " H{:.1} V{:.1}", LEFT + distance * (at + 1) as f64, y(pair[1]));
        }
    }
    let _ = write!(path, " H{:.1}", LEFT + width);
    path
}

/// Merges points that no screen can show separately; peaks are kept.
fn merge(values: &[u32]) -> Vec<u32> {
    let group = values.len().div_ceil(MAX_POINTS).max(1);
    values.chunks(group).map(|chunk| chunk.iter().copied().max().unwrap_or(0)).collect()
}

/// The maximum of the vertical axis: 4, 8, 20, 40, 80, 200, …
fn axis_end(highest: u32) -> u32 {
    let mut top: u32 = 4;
    for factor in [2.0, 2.5, 2.0].into_iter().cycle() {
        if top >= highest {
            return top;
        }
        match (f64::from(top) * factor).round() {
            next if next < f64::from(u32::MAX) => top = next as u32,
            _ => return u32::MAX,
        }
    }
    top
}

/// A number of the axis that ends at `top`, short enough for the space beside it.
fn label(value: u32, top: u32) -> String {
    match top {
        _ if value == 0 => "0".to_owned(),
        10_000_000.. => format!("{}M", f64::from(value) / 1e6),
        10_000.. => format!("{}k", f64::from(value) / 1e3),
        _ => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_of_large_numbers_are_short() {
        let labels = [(40, 80), (2500, 4000), (50_000, 200_000), (2500, 10_000), (5_000_000, 20_000_000)];
        assert_eq!(labels.map(|(value, top)| label(value, top)), ["40", "2500", "50k", "2.5k", "5M"]);
    }

    #[test]
    fn a_chart_is_xml_with_a_step_where_a_number_changes() {
        let series = [
            Series { name: "running <jobs>", colour: "#07c", values: &[0, 0, 3, 3], filled: true },
            Series { name: "none", colour: "#c70", values: &[], filled: false },
        ];
        let svg = draw("a \"chart\" & more", &series, &[(0.0, "12:00".to_owned()), (1.0, "now".to_owned())]);
        let document = roxmltree::Document::parse(&svg).expect("must be XML");
        let paths: Vec<&str> = document.descendants().filter_map(|node| node.attribute("d")).collect();
        assert_eq!(paths.len(), 3);
        assert_eq!(paths[1], "M44.0 176.0 H318.0 V66.5 H592.0");
        assert!(svg.contains("running &lt;jobs&gt;"));
    }

    #[test]
    fn a_long_chart_is_short_and_keeps_its_peak() {
        let mut values = vec![1; 100_000];
        values[51_234] = 700;
        let svg = draw("t", &[Series { name: "n", colour: "#000", values: &values, filled: false }], &[]);
        assert!(svg.len() < 5000, "{}", svg.len());
        assert!(svg.contains(">800<"), "{svg}");
    }

    #[test]
    fn the_axis_ends_at_a_round_number() {
        assert_eq!([0, 4, 5, 8, 9, 21, 41, 81, u32::MAX].map(axis_end), [4, 4, 8, 8, 20, 40, 80, 200, u32::MAX]);
    }
}
