//! What the sections of the page are made of.

use maud::{Markup, html};

use crate::report::Interval;

/// A cell of more bytes than this is text that may be broken into lines; a figure may not.
const PROSE_BYTES: usize = 40;

/// A chart, which the page's script draws where the id says.
pub(super) fn chart(id: &str, label: &str) -> Markup {
    html! {
        div class={ "chart " (id.split('-').next().unwrap_or_default()) } { canvas id=(id) role="img" aria-label=(label) {} }
    }
}

/// A table. The last cell of a row that ends early spans the rest.
pub(super) fn table(head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> Markup {
    html! {
        div.scroll {
            table {
                thead { tr { @for name in head { th { (name) } } } }
                tbody {
                    @for row in rows {
                        tr {
                            @for (at, cell) in row.iter().enumerate() {
                                td.prose[cell.len() > PROSE_BYTES]
                                    colspan=(span(at, row.len(), head.len())) { (cell) }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn span(at: usize, cells: usize, columns: usize) -> usize {
    if at + 1 == cells { columns - at } else { 1 }
}

/// An interval in another unit, as its mean and half its width.
pub(super) fn interval(interval: &Interval, unit: f64, digits: usize) -> String {
    let mean = interval.mean / unit;
    match interval.high {
        Some(high) => format!("{mean:.digits$} ± {:.digits$}", high / unit - mean),
        None => format!("{mean:.digits$}"),
    }
}

/// A figure with so many digits after the point.
pub(super) fn digits(figure: f64, digits: usize) -> String {
    format!("{figure:.digits$}")
}

/// A figure of which nothing behind the point matters, unless it is small.
pub(crate) fn short(figure: f64) -> String {
    if figure >= 100.0 { digits(figure, 0) } else { figure.to_string() }
}

/// A count, in thousands if it is large.
pub(super) fn count(count: u64) -> String {
    if count >= 10_000 { format!("{} thousand", count / 1000) } else { count.to_string() }
}

/// How long something took, or that it never came.
pub(super) fn after(milliseconds: Option<f64>) -> String {
    milliseconds.map_or_else(|| "never".to_owned(), |it| format!("{it:.0} ms"))
}
