//! Real input: Debian's word list and the Unicode Character Database.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Rows, by their keys; ordered as LC_ALL=C orders them.
pub(crate) type Rows = BTreeMap<String, String>;

const WORDS: &str = "/usr/share/dict/american-english";
const WORDS_COUNT: usize = 104_334;

const UNICODE_DATA: &str = "/usr/share/unicode/UnicodeData.txt";
const UNICODE_DATA_COUNT: u32 = 34_924;

/// Set where the real input must be there, as in continuous integration.
const REQUIRE: &str = "TRIREME_REQUIRE_DATA";

/// Returns the words in the list's order, each with the number of its line.
pub(crate) fn words() -> Vec<(String, String)> {
    let text = read_or_generate(Path::new(WORDS), "wamerican", made_up_words);
    let lines = text.lines().zip(1u32..);
    lines.map(|(word, number)| (word.to_owned(), number.to_string())).collect()
}

/// Returns the text of the Unicode Character Database: lines of fields with semicolons between.
pub(crate) fn unicode_data() -> String {
    read_or_generate(Path::new(UNICODE_DATA), "unicode-data", made_up_unicode_data)
}

/// Returns as many different lines as the word list has, of letters of both cases.
pub(crate) fn made_up_words() -> String {
    (0..WORDS_COUNT).map(|number| word(number) + "\n").collect()
}

/// Returns as many lines as the Unicode Character Database has, in its form.
pub(crate) fn made_up_unicode_data() -> String {
    let line = |code| format!("{code:04X};LETTER NUMBER {code};Lo;0;L;;;;;N;;;;;\n");
    (0..UNICODE_DATA_COUNT).map(line).collect()
}

/// Returns rows as lines of key, tab and value.
pub(crate) fn tsv<'a>(rows: impl IntoIterator<Item = (&'a String, &'a String)>) -> String {
    rows.into_iter().map(|(key, value)| format!("{key}\t{value}\n")).collect()
}

/// Returns rows in key order; of two with one key the later one.
pub(crate) fn sorted(rows: &[(String, String)]) -> Rows {
    rows.iter().cloned().collect()
}

/// Returns keys of the rows that cut them into so many parts, as `--split-at` takes them.
pub(crate) fn split_keys(rows: &Rows, parts: usize) -> String {
    let keys: Vec<&str> = rows.keys().map(String::as_str).collect();
    let borders: Vec<&str> = (1..parts).map(|part| keys[part * keys.len() / parts]).collect();
    borders.join(",")
}

#[expect(clippy::print_stderr, reason = "a fallback must not go unseen")]
fn read_or_generate(path: &Path, package: &str, generate: impl Fn() -> String) -> String {
    if path.exists() {
        return fs::read_to_string(path).unwrap();
    }
    let path = path.display();
    assert!(std::env::var_os(REQUIRE).is_none(), "{path} is not there: install {package}");
    eprintln!("WARNING: {path} is not there (package {package}); made-up data is used instead");
    generate()
}

/// Returns a made-up word; each number has its own, and they come in no order.
fn word(number: usize) -> String {
    let mut word = String::new();
    let mut rest = number * 7919 % 1_000_003;
    while rest > 0 || word.len() < 2 {
        let letter = char::from(b'a' + u8::try_from(rest % 26).unwrap());
        word.push(if word.is_empty() && number.is_multiple_of(5) {
            letter.to_ascii_uppercase()
        } else {
            letter
        });
        rest /= 26;
    }
    format!("{word}{}", if number.is_multiple_of(7) { "'s" } else { "" })
}
