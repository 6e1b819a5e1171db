//! Tables for people: columns without lines, so that they can be cut and searched as well.

use comfy_table::{ContentArrangement, Table};

/// Spaces between columns.
const GAP: u16 = 2;

/// Starts a table with these column heads.
pub(crate) fn table(heads: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::NOTHING);
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(heads);
    table
}

/// Returns the table as text, without spaces at the ends of lines.
pub(crate) fn text(mut table: Table) -> String {
    for column in table.column_iter_mut() {
        column.set_padding((0, GAP));
    }
    table.trim_fmt()
}

/// Returns what stands in a table for something that there may not be.
pub(crate) fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}
