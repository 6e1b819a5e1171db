//! The rules of ARCHITECTURE.md that a build does not enforce by itself.

#![allow(clippy::unwrap_used, reason = "a test that cannot read the sources has failed")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Every Rust file below a folder of the repository, with its text.
fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path, text));
            }
        }
    }
    assert!(!found.is_empty(), "no source in {folder}");
    found
}

/// The lines of a file that are code: comments may name what code may not.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.trim_start().starts_with("//"))
}

/// The dependencies of a crate on others of this workspace, tests aside.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(root().join(manifest)).unwrap();
    let section = text.split("[dependencies]").nth(1).expect("the crate has dependencies");
    let section = section.split("\n[").next().unwrap();
    section
        .lines()
        .filter_map(|line| line.strip_prefix("trireme-"))
        .map(|rest| rest.split(['.', ' ', '=']).next().unwrap().to_owned())
        .collect()
}

#[test]
fn crates_import_only_what_the_table_allows() {
    let allowed: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("crates/types", &[][..]),
        ("proto", &["types"]),
        ("crates/storage", &["types"]),
        ("crates/replication", &["types", "storage", "proto"]),
        ("crates/coordinator", &["types"]),
        ("crates/embedded", &[]),
        ("crates/client", &["types", "proto"]),
        ("crates/checker", &[]),
        ("crates/server", &["types", "proto", "storage", "replication", "coordinator"]),
        ("crates/lab", &["types", "proto", "client", "checker"]),
    ]);
    for (krate, allowed) in allowed {
        let found = dependencies(&format!("{krate}/Cargo.toml"));
        let allowed: BTreeSet<String> = allowed.iter().map(|name| (*name).to_owned()).collect();
        let extra: Vec<_> = found.difference(&allowed).collect();
        assert!(extra.is_empty(), "{krate} must not depend on {extra:?}");
    }
}

#[test]
fn only_raft_names_openraft() {
    for folder in ["crates", "proto/src"] {
        for (path, text) in sources(folder) {
            let is_raft = path.components().any(|part| part.as_os_str() == "raft");
            let is_this = path.ends_with("tests/architecture.rs");
            if is_raft || is_this {
                continue;
            }
            let named = code(&text).any(|line| line.contains("openraft"));
            assert!(!named, "{} names openraft", path.display());
        }
    }
}

#[test]
fn only_the_coordinator_names_etcd_client() {
    for folder in ["crates", "proto/src"] {
        for (path, text) in sources(folder) {
            let may = ["crates/coordinator", "crates/embedded"];
            let may = may.iter().any(|folder| path.starts_with(root().join(folder)));
            if may || path.ends_with("tests/architecture.rs") {
                continue;
            }
            let named = code(&text).any(|line| line.contains("etcd_client"));
            assert!(!named, "{} names etcd-client", path.display());
        }
    }
}

#[test]
fn the_server_matches_on_the_protocol_in_one_folder_alone() {
    for (path, text) in sources("crates/server/src") {
        if path.components().any(|part| part.as_os_str() == "protocols") {
            continue;
        }
        // What a cluster is started with by default is a choice of the command line, no behaviour.
        let arms = code(&text).filter(|line| line.contains("Protocol::") && line.contains("=>"));
        assert_eq!(arms.count(), 0, "{} decides by the protocol", path.display());
    }
}

#[test]
fn storage_knows_no_leader_and_no_quorum() {
    for (path, text) in sources("crates/storage/src") {
        for word in ["leader", "quorum", "majority"] {
            let named = code(&text).any(|line| line.to_lowercase().contains(word));
            assert!(!named, "{} speaks of a {word}", path.display());
        }
    }
}

#[test]
fn the_cores_have_no_clock_no_io_and_no_order_by_chance() {
    let folders = ["core", "streaming", "spinnaker", "pacifica"];
    let mut files: Vec<_> = folders
        .iter()
        .flat_map(|folder| sources(&format!("crates/replication/src/{folder}")))
        .collect();
    let core = root().join("crates/replication/src/core.rs");
    files.push((core.clone(), fs::read_to_string(core).unwrap()));
    for (path, text) in files {
        let tested = text.split("#[cfg(test)]").next().unwrap();
        for word in ["tokio", "std::time::Instant", "SystemTime", "rand::", "std::fs", "HashMap"] {
            let named = code(tested).any(|line| line.contains(word));
            assert!(!named, "{} uses {word}", path.display());
        }
    }
}
