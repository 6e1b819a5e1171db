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
        ("crates/fuzz", &[]),
        ("crates/fake", &["types", "proto"]),
        ("crates/server", &["types", "proto", "storage", "replication", "coordinator"]),
        ("crates/testbed", &["types", "client", "coordinator"]),
        ("crates/sim", &["types", "storage", "replication", "coordinator", "checker"]),
        ("crates/compare", &["types", "client", "checker", "testbed"]),
        ("crates/lab", &["types", "proto", "client", "checker", "testbed"]),
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
fn only_the_coordinator_and_the_comparison_with_etcd_name_etcd_client() {
    for folder in ["crates", "proto/src"] {
        for (path, text) in sources(folder) {
            let may = ["crates/coordinator", "crates/embedded", "crates/compare/src/etcd.rs"];
            let may = may.iter().any(|folder| path.starts_with(root().join(folder)));
            if may || path.ends_with("tests/architecture.rs") {
                continue;
            }
            let named = code(&text).any(|line| line.contains("etcd_client"));
            assert!(!named, "{} names etcd-client", path.display());
        }
    }
}

/// The crates whose tests may switch deliberate faults on, in their `dev-dependencies`: nothing that is
/// built to be kept contains what those ask for.
const MAKE_MISTAKES: [&str; 2] = ["crates/replication/Cargo.toml", "crates/sim/Cargo.toml"];

#[test]
fn only_tests_can_switch_deliberate_faults_on() {
    let mut manifests = vec![root().join("Cargo.toml"), root().join("proto/Cargo.toml")];
    for folder in fs::read_dir(root().join("crates")).unwrap() {
        manifests.push(folder.unwrap().path().join("Cargo.toml"));
    }
    let replication = root().join(MAKE_MISTAKES[0]);
    for manifest in manifests {
        let text = fs::read_to_string(&manifest).unwrap();
        let is_listed = MAKE_MISTAKES.iter().any(|listed| manifest == root().join(listed));
        for section in text.split("\n[") {
            let is_named = section.lines().any(|line| {
                !line.trim_start().starts_with('#') && line.contains("deliberate-faults")
            });
            let may = is_listed && section.starts_with("dev-dependencies]")
                || manifest == replication
                    && section.starts_with("features]")
                    && section.contains("\ndeliberate-faults = []");
            assert!(!is_named || may, "{} can switch deliberate faults on", manifest.display());
        }
        let by_default = text.lines().any(|line| line.starts_with("default = "));
        assert!(manifest != replication || !by_default, "replication has default features");
    }
    for (path, text) in sources("crates/replication/src") {
        // Elsewhere a switch could be asked for that is there in every build.
        let named = code(&text).any(|line| line.contains("feature = \"deliberate-faults\""));
        assert!(!named || path.ends_with("streaming/faults.rs"), "{}", path.display());
    }
}

/// What cargo itself makes of the manifests: built without tests, no crate of the workspace has the
/// feature, alone or all at once. With tests, it is there, so that the word is the right one.
#[test]
fn what_is_built_without_tests_has_no_deliberate_faults() {
    let features = |edges: &str| {
        let mut cargo = std::process::Command::new(env!("CARGO"));
        cargo.args(["tree", "--workspace", "--offline", "--locked", "--edges", edges]);
        let tree = cargo.current_dir(root()).output().unwrap();
        assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
        String::from_utf8(tree.stdout).unwrap()
    };
    let feature = "trireme-replication feature \"deliberate-faults\"";
    assert!(features("features").contains(feature), "cargo names the feature in another way");
    assert!(!features("features,no-dev").contains(feature), "a release would contain mistakes");
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

/// The lines of a source that are code and not tests.
fn shipped(text: &str) -> impl Iterator<Item = &str> {
    code(text.split("#[cfg(test)]").next().unwrap())
}

/// Whether a file consists of tests only.
fn is_test(path: &Path) -> bool {
    let name = path.file_stem().unwrap().to_string_lossy();
    name.ends_with("test")
        || name == "tests"
        || path.components().any(|part| part.as_os_str() == "tests")
}

#[test]
fn there_is_no_log_beside_the_shared_log() {
    // Replicas reach the disk through storage alone; what the server writes itself are small files
    // that it replaces whole.
    for (path, text) in sources("crates/replication/src") {
        let named = shipped(&text).any(|line| line.contains("std::fs") || line.contains("File::"));
        assert!(is_test(&path) || !named, "{} writes files of its own", path.display());
    }
    for (path, text) in sources("crates/server/src") {
        let appends = shipped(&text).any(|line| line.contains(".append(true)"));
        assert!(is_test(&path) || !appends, "{} appends to a file", path.display());
    }
}

#[test]
fn no_read_or_write_passes_the_coordinator() {
    let on_the_path =
        ["cohort/", "services/kv.rs", "request.rs", "answers.rs", "readers.rs", "backpressure.rs"];
    let folder = root().join("crates/server/src");
    let mut seen = 0;
    for (path, text) in sources("crates/server/src") {
        let name = path.strip_prefix(&folder).unwrap().to_string_lossy().into_owned();
        if on_the_path.iter().any(|part| name.starts_with(part)) {
            seen += 1;
            let named = shipped(&text).any(|line| line.to_lowercase().contains("coordinator"));
            assert!(!named, "{name} names the coordinator");
        }
    }
    assert!(seen >= on_the_path.len(), "the path of a read or a write has moved: {seen} files");
}

#[test]
fn no_queue_is_without_a_bound() {
    for folder in ["crates", "proto/src"] {
        for (path, text) in sources(folder) {
            let unbounded = |line: &str| {
                ["unbounded_channel", "UnboundedSender", "mpsc::channel()", "flume::unbounded"]
                    .iter()
                    .any(|word| line.contains(word))
            };
            let skipped = is_test(&path) || path.to_string_lossy().contains("/tests/");
            assert!(
                skipped || !shipped(&text).any(unbounded),
                "{} has a queue without a bound",
                path.display()
            );
        }
    }
}

#[test]
fn no_batch_waits_for_a_timer() {
    let (path, text) = sources("crates/server/src/cohort")
        .into_iter()
        .find(|(path, _)| path.ends_with("writes.rs"))
        .expect("batches of writes are gathered in cohort/writes.rs");
    for line in shipped(&text) {
        // The limits are on how long a batch that was proposed may take, and counts as under way.
        let waits = ["sleep", "interval(", "timeout("].iter().any(|word| line.contains(word));
        let limits = ["PROPOSE_TIMEOUT", "UNDER_WAY_TIMEOUT"];
        let bounded = limits.iter().any(|limit| line.contains(limit));
        assert!(!waits || bounded, "{}: {line}", path.display());
    }
}

/// What only a run can show, with the test that shows it.
#[test]
fn what_sources_cannot_show_has_a_test() {
    let shown = [
        ("crates/cli/tests/cluster_faults.rs", "faults_are_refused_unless_they_were_allowed"),
        ("crates/storage/tests/behaviour.rs", "a_failed_sync_ends_the_log_for_good"),
        ("crates/storage/src/tests/faults.rs", "a_failed_write_poisons"),
        ("crates/cli/tests/cluster_faults.rs", "a_node_of_which_a_task_panics_ends_and_says_why"),
        ("crates/storage/tests/damage.rs", "a_flipped_bit_is_found_wherever_it_is"),
        ("crates/storage/tests/damage.rs", "a_cut_file_is_corrupt"),
    ];
    for (file, test) in shown {
        let text = fs::read_to_string(root().join(file)).unwrap();
        assert!(text.contains(&format!("fn {test}(")), "{file} has no test {test}");
    }
}
