//! Draws what cannot be explained: a page with one lane for each client and a bar for each operation
//! around the one that could not follow.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::kv::{Input, KvOperation, Output};
use crate::verdict::CounterExample;

/// The most operations that are drawn: more are not readable.
const OPERATIONS_MAX: usize = 200;

const LANE_HEIGHT: u64 = 34;
const BAR_HEIGHT: u64 = 24;
const WIDTH: u64 = 1400;
const MARGIN: u64 = 90;

/// Returns a page that needs nothing else: it opens from a file.
pub fn page(title: &str, example: &CounterExample) -> String {
    let drawn = window(example);
    let moments = |place: &usize| {
        let operation = &example.part[*place];
        (operation.called, operation.answer.as_ref().map(|answer| answer.at))
    };
    let first = drawn.iter().map(|place| moments(place).0).min().unwrap_or(0);
    let ends = drawn.iter().map(|place| moments(place).1.unwrap_or(moments(place).0));
    let span = (ends.max().unwrap_or(first) - first).max(1);
    // A drawing needs no more precision than its pixels have.
    let at = |moment: u64| MARGIN + (moment - first).min(span) * (WIDTH - 2 * MARGIN) / span;
    let clients = drawn.iter().map(|&place| example.part[place].client);
    let lanes: BTreeMap<u64, u64> = {
        let distinct: std::collections::BTreeSet<u64> = clients.collect();
        distinct.into_iter().zip(0..).collect()
    };
    let height = LANE_HEIGHT * (lanes.len() as u64 + 1);
    let stuck = &example.part[example.stuck];
    let mut page = String::new();
    let title = escape(title);
    let why = escape(&format!("client {}: {}", stuck.client, label(stuck)));
    // Writing to a string cannot fail.
    let _ = write!(
        page,
        "<!doctype html><meta charset=\"utf-8\"><title>{title}</title>\
         <style>body{{font:14px sans-serif;margin:2em}}rect{{fill:#9ec5e8;stroke:#456}}\
         .later rect{{fill:#ddd}}.open rect{{fill:#f3d9a4}}.stuck rect{{fill:#e66}}\
         text{{font-size:12px}}</style>\
         <h1>{title}: not linearizable</h1>\
         <p>No order of the operations explains this answer: <b>{why}</b>.</p>\
         <p>Blue: in the longest order that was found ({} of {} operations). Grey: not in it. Yellow: \
         the outcome is ambiguous. Red: what could not follow. Hover over a bar for its place.</p>\
         <svg width=\"{WIDTH}\" height=\"{height}\" role=\"img\">",
        example.longest.len(),
        example.part.len(),
    );
    for (client, lane) in &lanes {
        let y = lane * LANE_HEIGHT + LANE_HEIGHT / 2 + 8;
        let _ = write!(page, "<text x=\"4\" y=\"{y}\">client {client}</text>");
    }
    let order: BTreeMap<usize, usize> = example.longest.iter().copied().zip(1..).collect();
    for place in drawn {
        let operation = &example.part[place];
        let (called, returned) = moments(&place);
        let (x, y) = (at(called), lanes[&operation.client] * LANE_HEIGHT + 5);
        let width = (returned.map_or(WIDTH - MARGIN / 2, at) - x).max(4);
        let class = match (place == example.stuck, returned, order.get(&place)) {
            (true, ..) => "stuck",
            (_, None, _) => "open",
            (_, _, None) => "later",
            (_, _, Some(_)) => "placed",
        };
        let place = match order.get(&place) {
            Some(number) => format!("number {number} in the order"),
            None => "not in the order".to_owned(),
        };
        let returned = returned.map_or("never".to_owned(), |moment| moment.to_string());
        let (text, baseline) = (escape(&label(operation)), y + BAR_HEIGHT / 2 + 4);
        let _ = write!(
            page,
            "<g class=\"{class}\"><title>{text}; called {called}, answered {returned}; {place}</title>\
             <rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{BAR_HEIGHT}\" rx=\"3\"/>\
             <text x=\"{}\" y=\"{baseline}\">{text}</text></g>",
            x + 3,
        );
    }
    page.push_str("</svg>\n");
    page
}

/// Returns the operations to draw: those that overlap the one that could not follow, or were answered
/// not long before, as places in the part.
fn window(example: &CounterExample) -> Vec<usize> {
    let part = &example.part;
    let stuck = &part[example.stuck];
    let mut near: Vec<usize> =
        (0..part.len()).filter(|&place| part[place].called <= stuck.returned()).collect();
    near.sort_by_key(|&place| (part[place].returned(), part[place].called));
    // Ambiguous operations are open for ever: those called last are the likeliest to matter.
    let mut drawn: Vec<usize> = near.split_off(near.len().saturating_sub(OPERATIONS_MAX));
    if !drawn.contains(&example.stuck) {
        drawn.push(example.stuck);
    }
    drawn
}

/// Returns an operation and its answer in a few words.
pub fn label(operation: &KvOperation) -> String {
    let asked = match &operation.input {
        Input::Get { key } => format!("get {key}"),
        Input::Put { key, value } => format!("put {key} = {value}"),
        Input::Delete { key } => format!("delete {key}"),
        Input::Append { key, value } => format!("append {key} += {value}"),
        Input::CompareAndSet { key, expected, value } => {
            format!("set {key} = {value} if {}", expected.as_deref().unwrap_or("(no value)"))
        }
        Input::Scan { start, end } => {
            format!("scan {start}..{}", end.as_deref().unwrap_or_default())
        }
    };
    let answered = match operation.answer.as_ref().map(|answer| &answer.output) {
        None => "?".to_owned(),
        Some(Output::Done) => "done".to_owned(),
        Some(Output::Refused) => "refused".to_owned(),
        Some(Output::Found(found)) => found.as_deref().unwrap_or("(no value)").to_owned(),
        Some(Output::Rows(rows)) => format!("{} rows", rows.len()),
    };
    format!("{asked} -> {answered}")
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
