//! `trireme compare`, from the command to the page in a browser.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// If this is set, a test that finds no browser fails instead of being skipped.
const REQUIRE: &str = "TRIREME_REQUIRE_CHROMIUM";

/// How wide the page is opened: on a phone and on a desk.
const WIDTHS: [u32; 2] = [390, 1440];

fn compare(out: &Path, more: &[&str]) -> Output {
    let out = out.to_str().unwrap();
    let args = ["compare", "--suite", "tiny", "--out", out];
    Command::new(env!("CARGO_BIN_EXE_trireme")).args(args).args(more).output().unwrap()
}

fn report(out: &Path) -> Value {
    serde_json::from_slice(&fs::read(out.join("report.json")).unwrap()).unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Everything at once, since a run takes its time: the clusters, the report, the page.
#[test]
fn a_comparison_is_judged_and_drawn() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("report");
    let ran = compare(&out, &["--assert", "raft.write.throughput>1"]);
    assert!(ran.status.success(), "{}\n{}", text(&ran.stdout), text(&ran.stderr));
    assert!(text(&ran.stdout).contains("consistency kept"), "{}", text(&ran.stdout));

    let report = report(&out);
    assert_eq!((&report["schema"], &report["is_complete"]), (&2.into(), &true.into()));
    let systems: Vec<_> =
        report["systems"].as_array().unwrap().iter().map(|it| &it["name"]).collect();
    assert_eq!(systems, ["spinnaker", "raft", "pacifica", "none", "spinnaker again"]);
    for measured in report["workloads"][0]["systems"].as_array().unwrap() {
        assert!(measured["operations"].as_u64().unwrap() > 0, "{measured}");
        assert!(measured["cost"]["forced_writes"].as_f64().unwrap() > 0.0, "{measured}");
        assert_eq!(measured["failed"], 0, "{measured}");
    }
    for suffered in report["faults"][0]["systems"].as_array().unwrap() {
        assert_eq!(suffered["error"], Value::Null);
        let (outage, again) = (&suffered["longest_outage_ms"], &suffered["half_after_ms"]);
        assert!(outage.as_f64().unwrap() > 100.0, "the leader was killed: {suffered}");
        assert!(again.is_f64(), "it serves again: {suffered}");
    }
    let checks = &report["checks"];
    assert_eq!((&checks["histories"], &checks["lost_writes"]), (&18.into(), &0.into()), "{checks}");

    let page = fs::read_to_string(out.join("report.html")).unwrap();
    let Some(browser) = browser() else { return };
    for is_dark in [false, true] {
        is_drawn(&browser, folder.path(), &page, is_dark);
    }
}

#[test]
fn what_is_asserted_and_does_not_hold_fails_the_command() {
    let folder = tempfile::tempdir().unwrap();
    let more =
        ["--protocols", "spinnaker", "--fault", "none", "--assert", "spinnaker.write.p50<1us"];
    let ran = compare(folder.path(), &more);
    assert!(!ran.status.success());
    let said = text(&ran.stderr);
    assert!(said.contains("'spinnaker.write.p50<1us' does not hold"), "{said}");

    // The report is there, and can be what a later one is held against.
    let before = folder.path().join("report.json");
    assert_eq!(report(folder.path())["is_complete"], true);
    let more = ["--protocols", "spinnaker", "--fault", "none", "--baseline"];
    let more = [&more[..], &[before.to_str().unwrap()]].concat();
    let ran = compare(&folder.path().join("later"), &more);
    assert!(ran.status.success(), "{}", text(&ran.stderr));
    assert!(text(&ran.stderr).contains("worse than in"), "{}", text(&ran.stderr));
}

/// Every kind of operation, more than one range, and another durability.
#[test]
fn every_kind_of_operation_is_judged() {
    let folder = tempfile::tempdir().unwrap();
    let workloads = ["ycsb-d", "ycsb-e", "ycsb-f", "hot-key", "write-if", "ranges-16", "memory-4"];
    let more = workloads.iter().flat_map(|name| ["--workload", name]);
    let more: Vec<&str> = more.chain(["--protocols", "pacifica", "--fault", "none"]).collect();
    let ran = compare(folder.path(), &more);
    assert!(ran.status.success(), "{}\n{}", text(&ran.stdout), text(&ran.stderr));
    let report = report(folder.path());
    let driven = report["workloads"].as_array().unwrap();
    let figures = |name: &str| driven.iter().find(|it| it["name"] == name).unwrap();
    for name in workloads {
        let measured = &figures(name)["systems"][0];
        assert!(measured["operations"].as_u64().unwrap() > 0, "{name}: {measured}");
        assert_eq!(measured["failed"], 0, "{name}: {measured}");
    }
    assert!(figures("ycsb-f")["keys"].as_u64().unwrap() > 100, "keys were added before it");
    assert_eq!(
        (&figures("ranges-16")["ranges"], &figures("write-if")["ranges"]),
        (&16.into(), &1.into())
    );
    assert_eq!(figures("memory-4")["durability"], "memory");
    let checks = &report["checks"];
    assert_eq!(
        (&checks["undecided"], &checks["not_linearizable"]),
        (&0.into(), &0.into()),
        "{checks}"
    );
}

/// The periods of the papers reach the nodes, and the report.
#[test]
fn native_timeouts_have_each_protocol_wait_as_long_as_its_source() {
    let folder = tempfile::tempdir().unwrap();
    let more = ["--protocols", "spinnaker,raft", "--workload", "none", "--fault", "leader-kill"];
    let ran = compare(folder.path(), &[&more[..], &["--native-timeouts"]].concat());
    assert!(ran.status.success(), "{}\n{}", text(&ran.stdout), text(&ran.stderr));
    let report = report(folder.path());
    let grace = |at: usize| report["systems"][at]["grace_ms"].as_f64().unwrap();
    assert!(grace(0) > grace(1), "{}", report["systems"]);
    for (at, suffered) in report["faults"][0]["systems"].as_array().unwrap().iter().enumerate() {
        let outage = suffered["longest_outage_ms"].as_f64().unwrap();
        // Less a beacon interval, since when the leader was silent when it died.
        assert!(outage > grace(at) * 0.7, "{suffered}");
    }
}

/// A replica that votes as if it had not lost its disk: what was acknowledged is lost, the page says
/// so in red, and the command fails.
#[test]
fn a_product_that_breaks_its_promises_fails_the_command() {
    if !cfg!(debug_assertions) {
        // A release has no deliberate mistakes.
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let more = ["--protocols", "spinnaker", "--workload", "none", "--fault", "lost-in-turn"];
    let kept = compare(&folder.path().join("kept"), &more);
    assert!(kept.status.success(), "{}\n{}", text(&kept.stdout), text(&kept.stderr));
    let broken = [&more[..], &["--mistake", "trusts-an-empty-disk"]].concat();
    let out = folder.path().join("broken");
    let ran = compare(&out, &broken);
    assert_eq!(ran.status.code(), Some(1), "{}", text(&ran.stdout));
    assert!(text(&ran.stderr).contains("consistency was violated"), "{}", text(&ran.stderr));
    assert!(report(&out)["checks"]["not_linearizable"].as_u64().unwrap() > 0);
    let page = fs::read_to_string(out.join("report.html")).unwrap();
    assert!(page.contains("class=\"banner bad\""));
}

/// etcd beside the protocols, where it is installed.
#[test]
#[expect(clippy::print_stderr, reason = "a test that is skipped must not go unseen")]
fn another_store_stands_beside_the_protocols() {
    let folder = tempfile::tempdir().unwrap();
    let more = ["--against", "etcd", "--protocols", "raft", "--fault", "none"];
    let ran = compare(folder.path(), &more);
    if text(&ran.stderr).contains("there is no `etcd`") {
        assert!(env::var_os("TRIREME_REQUIRE_ETCD").is_none(), "there is no etcd");
        eprintln!("SKIPPED: there is no etcd to be compared with");
        return;
    }
    assert!(ran.status.success(), "{}\n{}", text(&ran.stdout), text(&ran.stderr));
    let report = report(folder.path());
    let systems = report["workloads"][0]["systems"].as_array().unwrap();
    let etcd = systems.iter().find(|it| it["system"] == "etcd").unwrap();
    assert!(etcd["operations"].as_u64().unwrap() > 0, "{etcd}");
    assert!(etcd["cost"]["processor_us"].as_f64().unwrap() > 0.0, "{etcd}");
    assert!(report["predictions"].as_array().unwrap().iter().all(|it| it["system"] != "etcd"));
}

#[test]
fn an_interrupted_comparison_stops_its_clusters_and_keeps_what_it_has() {
    let folder = tempfile::tempdir().unwrap();
    let (out, clusters) = (folder.path().join("report"), folder.path().join("clusters"));
    fs::create_dir(&clusters).unwrap();
    let mut running = Command::new(env!("CARGO_BIN_EXE_trireme"))
        .args(["compare", "--suite", "standard", "--out", out.to_str().unwrap()])
        .args(["--folder", clusters.to_str().unwrap()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    until("a cluster runs", || !processes_of(&clusters).is_empty());
    interrupt(running.id());
    let status = running.wait().unwrap();
    assert!(!status.success());
    until("no process is left", || processes_of(&clusters).is_empty());
    assert_eq!(report(&out)["is_complete"], false);
    assert!(fs::read_to_string(out.join("report.html")).unwrap().contains("was interrupted"));
}

fn until(what: &str, is_so: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < end, "{what}: not within a minute");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Returns the processes that name a folder on their command line.
fn processes_of(folder: &Path) -> Vec<PathBuf> {
    let name = folder.to_str().unwrap();
    let processes = fs::read_dir("/proc").unwrap().filter_map(Result::ok).map(|it| it.path());
    let named = processes.filter(|process| {
        let line = fs::read(process.join("cmdline")).unwrap_or_default();
        let line = text(&line);
        line.contains(name) && !line.contains("compare")
    });
    named.collect()
}

fn interrupt(pid: u32) {
    let status = Command::new("kill").args(["-INT", &pid.to_string()]).status().unwrap();
    assert!(status.success());
}

/// Returns a browser that can draw without a screen.
#[expect(clippy::print_stderr, reason = "a test that is skipped must not go unseen")]
fn browser() -> Option<PathBuf> {
    let folders = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&folders).map(|folder| folder.join("chromium"));
    let found = found.into_iter().find(|program| program.is_file());
    assert!(found.is_some() || env::var_os(REQUIRE).is_none(), "there is no chromium");
    if found.is_none() {
        eprintln!("SKIPPED: there is no chromium, so the page was not opened");
    }
    found
}

/// Opens the page at every width, and checks that nothing went wrong in it, that every chart has
/// data, and that nothing is wider than the page.
fn is_drawn(browser: &Path, folder: &Path, page: &str, is_dark: bool) {
    let catch = "<head><script>window.wrongs = []; \
                 addEventListener('error', (it) => wrongs.push(it.message)); \
                 console.error = (...it) => wrongs.push(it.join(' '));</script>";
    let framed = page.replacen("<head>", catch, 1).replace('&', "&amp;").replace('"', "&quot;");
    let frames: String = WIDTHS
        .iter()
        .map(|width| format!("<iframe width={width} height=800 srcdoc=\"{framed}\"></iframe>"))
        .collect();
    let outer = folder.join("outer.html");
    fs::write(&outer, format!("<!doctype html><body>{frames}<script>{LOOK}</script></body>"))
        .unwrap();
    let scheme = if is_dark { 0 } else { 1 };
    let shown = Command::new(browser)
        .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom"])
        .arg(format!("--user-data-dir={}", folder.join("browser").display()))
        .arg(format!("--blink-settings=preferredColorScheme={scheme}"))
        .arg("--window-size=1600,1000")
        .arg("--virtual-time-budget=20000")
        .arg(format!("file://{}", outer.display()))
        .output()
        .unwrap();
    let dom = text(&shown.stdout);
    let found = dom.split("<pre id=\"found\">").nth(1).and_then(|rest| rest.split("</pre>").next());
    let found = found.unwrap_or_else(|| panic!("nothing was drawn: {}", text(&shown.stderr)));
    let found: Vec<Value> = serde_json::from_str(&found.replace("&amp;", "&")).unwrap();
    assert_eq!(found.len(), WIDTHS.len());
    for (looked, width) in found.iter().zip(WIDTHS) {
        assert_eq!(looked["wrongs"], Value::Array(vec![]), "{looked}");
        assert!(looked["width"].as_u64().unwrap() <= width.into(), "{looked}");
        assert_eq!(looked["is_dark"], is_dark, "{looked}");
        let charts = looked["charts"].as_array().unwrap();
        assert_eq!(charts.len(), 7, "throughput, latency, three paths, fault and cost: {looked}");
        assert!(charts.iter().all(|points| points.as_u64().unwrap() > 2), "{looked}");
        assert_eq!(looked["canvases"], charts.len(), "{looked}");
    }
}

/// What the outer page finds in its frames, once they are loaded.
const LOOK: &str = r#"
addEventListener("load", () => {
  const looked = [...document.querySelectorAll("iframe")].map((frame) => {
    const { contentWindow: page, contentDocument: inner } = frame;
    const points = (set) => set.data.filter((it) => it !== null).length;
    return {
      wrongs: page.wrongs,
      width: inner.documentElement.scrollWidth,
      is_dark: page.matchMedia("(prefers-color-scheme: dark)").matches,
      canvases: inner.querySelectorAll("canvas").length,
      charts: (page.triremeCharts || []).map((chart) =>
        chart.data.datasets.reduce((sum, set) => sum + points(set), 0)),
    };
  });
  const found = document.createElement("pre");
  found.id = "found";
  found.textContent = JSON.stringify(looked);
  document.body.append(found);
});
"#;
