//! Pictures of what was measured, as SVG: lines over logarithmic axes.

use plotters::prelude::*;
use std::io;
use std::path::Path;

/// A line with its name.
pub(super) struct Line {
    name: &'static str,
    points: Vec<(f64, f64)>,
}

impl Line {
    pub(super) fn new(name: &'static str, points: Vec<(f64, f64)>) -> Line {
        Line { name, points }
    }
}

/// Tells lines apart for the colour-blind as well: Okabe and Ito's palette.
const COLOURS: [RGBColor; 5] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
];

/// Draws positive points over two logarithmic axes.
pub(super) fn draw(
    path: &Path,
    title: &str,
    (across, up): (&str, &str),
    lines: &[Line],
) -> io::Result<()> {
    let range = |get: fn(&(f64, f64)) -> f64| {
        let values = || lines.iter().flat_map(|line| &line.points).map(get);
        let least = values().fold(f64::INFINITY, f64::min);
        least..values().fold(least, f64::max) * 1.2
    };
    let (x, y) = (range(|point| point.0), range(|point| point.1));
    if !(x.start > 0.0 && y.start > 0.0 && x.end.is_finite() && y.end.is_finite()) {
        return Err(io::Error::other("nothing to draw"));
    }
    let wrong = |error: &dyn std::fmt::Display| io::Error::other(error.to_string());
    let root = SVGBackend::new(path, (960, 600)).into_drawing_area();
    root.fill(&WHITE).map_err(|e| wrong(&e))?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 22))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(84)
        .build_cartesian_2d(x.log_scale(), y.log_scale())
        .map_err(|e| wrong(&e))?;
    chart
        .configure_mesh()
        .x_desc(across)
        .y_desc(up)
        .x_label_formatter(&|value| short(*value))
        .y_label_formatter(&|value| short(*value))
        .draw()
        .map_err(|e| wrong(&e))?;
    for (line, colour) in lines.iter().zip(COLOURS.iter().cycle()) {
        let style = colour.stroke_width(2);
        chart
            .draw_series(LineSeries::new(line.points.iter().copied(), style))
            .map_err(|e| wrong(&e))?
            .label(line.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 24, y)], style));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE)
        .border_style(BLACK.mix(0.3))
        .draw()
        .map_err(|e| wrong(&e))?;
    root.present().map_err(|e| wrong(&e))
}

/// 1,000 as 1k, and so on.
fn short(value: f64) -> String {
    match value {
        value if value >= 1e9 => format!("{}G", value / 1e9),
        value if value >= 1e6 => format!("{}M", value / 1e6),
        value if value >= 1e3 => format!("{}k", value / 1e3),
        value => format!("{value}"),
    }
}
