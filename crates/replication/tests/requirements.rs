//! Every requirement that `docs/protocols` states is cited by the code that meets it and by a test
//! that fails without it.
//!
//! A requirement is defined by its tag in bold with a colon. Code cites it by a comment line of its
//! own, `//= ` and the tag; a test by the tag in square brackets: a script in its first comment,
//! Rust anywhere in a test.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Where a tag is cited.
#[derive(Debug, Default)]
struct Citations {
    code: BTreeSet<PathBuf>,
    tests: BTreeSet<PathBuf>,
}

#[test]
fn every_requirement_is_met_by_code_and_by_a_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut defined = BTreeSet::new();
    for path in files(&root.join("docs/protocols"), &|path| has_extension(path, "md")) {
        let fresh = definitions(&read(&path));
        assert!(fresh.is_disjoint(&defined), "{} defines a tag again", path.display());
        defined.extend(fresh);
    }
    assert!(!defined.is_empty(), "no requirement is defined");
    let cited = citations(&root);
    let problems = problems(&defined, &cited);
    assert!(problems.is_empty(), "\n{problems}");
}

/// The tags of pitfalls, mechanisms and the like stand in a table each.
#[test]
fn every_tag_that_is_cited_is_explained() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let table = root.join("docs/requirements.md");
    let explained: BTreeSet<String> =
        read(&table).lines().filter_map(first_cell).flat_map(tags_and_ranges).collect();
    let mut unknown = BTreeSet::new();
    let is_source = |path: &Path| has_extension(path, "rs") || path.extension().is_none();
    let is_page = |path: &Path| has_extension(path, "md");
    let sources = files(&root.join("crates"), &is_source);
    for path in sources.into_iter().chain(files(&root.join("docs"), &is_page)) {
        let is_code = has_extension(&path, "rs");
        for line in read(&path).lines() {
            let comment = if is_code { line.find("//").map(|at| &line[at..]) } else { Some(line) };
            let cited = words(comment.unwrap_or_default()).filter(|word| is_short_tag(word));
            let not_explained = cited.filter(|tag| !explained.contains(*tag));
            unknown.extend(not_explained.map(|tag| format!("{tag} in {}", path.display())));
        }
    }
    assert!(unknown.is_empty(), "docs/requirements.md does not explain {unknown:?}");
    assert_eq!(tags_and_ranges("M9 to M11, S2"), ["M9", "M10", "M11", "S2"], "it reads ranges");
}

fn first_cell(row: &str) -> Option<&str> {
    row.strip_prefix("| ")?.split(" |").next()
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|letter: char| !(letter.is_ascii_alphanumeric() || "_.-".contains(letter)))
        .map(|word| word.trim_end_matches(['.', '-']))
}

/// Returns true for a pitfall's or a mechanism's tag, such as S10; S0 is none.
fn is_short_tag(word: &str) -> bool {
    let number = word.strip_prefix(['S', 'P', 'C', 'M']).and_then(|it| it.parse::<u32>().ok());
    number.is_some_and(|number| (1..100).contains(&number))
}

/// Returns the tags that a row of the table explains: "M9, S2", or "M9 to M11".
fn tags_and_ranges(cell: &str) -> Vec<String> {
    let mut tags: Vec<String> = Vec::new();
    let mut is_range = false;
    for word in words(cell).filter(|word| !word.is_empty()) {
        if word == "to" {
            is_range = true;
        } else if is_short_tag(word) {
            let (letter, number) = (&word[..1], word[1..].parse::<u32>().unwrap_or_default());
            let last = tags.last().filter(|_| is_range).and_then(|tag| tag[1..].parse().ok());
            let from = last.map_or(number, |last: u32| last + 1);
            tags.extend((from..=number).map(|number| format!("{letter}{number}")));
            is_range = false;
        }
    }
    tags
}

/// Returns the tags that a document defines.
fn definitions(text: &str) -> BTreeSet<String> {
    let mut parts = text.split("**");
    // Every second part is in bold; what follows it says whether it defines something.
    let mut tags = BTreeSet::new();
    parts.next();
    while let (Some(bold), Some(after)) = (parts.next(), parts.next()) {
        if is_tag(bold) && after.starts_with(':') {
            tags.insert(bold.to_owned());
        }
    }
    tags
}

/// Returns every citation in the workspace's crates.
fn citations(root: &Path) -> BTreeMap<String, Citations> {
    let mut cited: BTreeMap<String, Citations> = BTreeMap::new();
    let is_source = |path: &Path| has_extension(path, "rs") || path.extension().is_none();
    for path in files(&root.join("crates"), &is_source) {
        let place = path.strip_prefix(root).expect("it was found there").to_path_buf();
        // This file only speaks of citations.
        if place.ends_with("tests/requirements.rs") {
            continue;
        }
        let text = read(&path);
        let (code, test) = parts(&place, &text);
        for tag in code.lines().filter_map(|line| line.trim().strip_prefix("//= ")) {
            cited.entry(tag.to_owned()).or_default().code.insert(place.clone());
        }
        for tag in bracketed(&test) {
            cited.entry(tag).or_default().tests.insert(place.clone());
        }
    }
    cited
}

/// Divides a file into what is code and what is test.
fn parts(place: &Path, text: &str) -> (String, String) {
    if !has_extension(place, "rs") {
        let header: Vec<_> = text.lines().take_while(|line| line.starts_with('#')).collect();
        return (String::new(), header.join("\n"));
    }
    let is_test = place.components().any(|part| part.as_os_str() == "tests")
        || place.to_string_lossy().ends_with("_test.rs");
    if is_test {
        return (String::new(), text.to_owned());
    }
    match text.split_once("#[cfg(test)]\nmod tests {") {
        Some((code, test)) => (code.to_owned(), test.to_owned()),
        None => (text.to_owned(), String::new()),
    }
}

/// Returns the tags that stand in square brackets.
fn bracketed(text: &str) -> Vec<String> {
    let after = text.split('[').skip(1);
    let inside = after.filter_map(|part| part.split_once(']').map(|(inside, _)| inside));
    inside.filter(|inside| is_tag(inside)).map(str::to_owned).collect()
}

/// Says whether the text is a tag: capitals, a hyphen and a number.
fn is_tag(text: &str) -> bool {
    text.split_once('-').is_some_and(|(name, number)| {
        !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_uppercase())
            && !number.is_empty()
            && number.bytes().all(|byte| byte.is_ascii_digit())
    })
}

/// Returns a table of what is wrong, empty if nothing is.
fn problems(defined: &BTreeSet<String>, cited: &BTreeMap<String, Citations>) -> String {
    let mut table = String::new();
    let mut row = |tag: &str, problem: &str, places: &BTreeSet<PathBuf>| {
        let places: Vec<_> = places.iter().map(|place| place.display().to_string()).collect();
        writeln!(table, "{tag:<10} {problem:<16} {}", places.join(" ")).expect("it has room");
    };
    let none = Citations::default();
    for tag in defined {
        let Citations { code, tests } = cited.get(tag).unwrap_or(&none);
        if code.is_empty() {
            row(tag, "no code", tests);
        }
        if tests.is_empty() {
            row(tag, "no test", code);
        }
    }
    // Other names in brackets, such as those of algorithms, are none of ours.
    let names: BTreeSet<_> = defined.iter().filter_map(|tag| tag.split_once('-')).collect();
    let is_ours = |tag: &str| names.iter().any(|(name, _)| tag.split('-').next() == Some(name));
    for (tag, Citations { code, tests }) in cited {
        if !defined.contains(tag) && (is_ours(tag) || !code.is_empty()) {
            row(tag, "not defined", &code.union(tests).cloned().collect());
        }
    }
    table
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found == extension)
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns the files below a folder that are wanted; scripts have no extension.
fn files(folder: &Path, is_wanted: &dyn Fn(&Path) -> bool) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let entries = std::fs::read_dir(folder)
        .unwrap_or_else(|error| panic!("cannot list {}: {error}", folder.display()));
    for entry in entries {
        let path = entry.expect("a folder can be listed").path();
        if path.is_dir() {
            // What is checked in as bytes cites nothing.
            if !path.ends_with("fixtures") && !path.ends_with("target") {
                found.extend(files(&path, is_wanted));
            }
        } else if is_wanted(&path) {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[test]
fn what_is_missing_or_unknown_is_named() {
    let defined = definitions("- **SPIN-1**: One.\n- **SPIN-2**: Two. See **SPIN-9**.");
    assert_eq!(defined.len(), 2);
    let place = |name: &str| BTreeSet::from([PathBuf::from(name)]);
    let cited = BTreeMap::from([
        ("SPIN-1".to_owned(), Citations { code: place("a.rs"), tests: place("b") }),
        ("SPIN-2".to_owned(), Citations { code: place("a.rs"), ..Citations::default() }),
        ("SPIN-3".to_owned(), Citations { tests: place("b"), ..Citations::default() }),
    ]);
    let problems = problems(&defined, &cited);
    let named: Vec<_> = problems.lines().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(named, ["SPIN-2", "SPIN-3"], "{problems}");
}

#[test]
fn code_and_tests_cite_in_their_own_ways() {
    let text = "//= SPIN-1\n#[cfg(test)]\nmod tests {\n    /// [SPIN-2]\n}";
    let (code, test) = parts(Path::new("crates/x/src/y.rs"), text);
    assert!(code.contains("SPIN-1") && bracketed(&test) == ["SPIN-2"]);
    let (code, test) =
        parts(Path::new("crates/x/tests/scripts/z"), "# [SPIN-3] [a]\n\nput [SPIN-4]");
    assert!(code.is_empty() && bracketed(&test) == ["SPIN-3"]);
}
