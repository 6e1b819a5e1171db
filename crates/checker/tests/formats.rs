//! Reading and writing histories, and drawing what is wrong with one.

use trireme_checker::format::{self, FormatError};
use trireme_checker::search::Limits;
use trireme_checker::{Verdict, check, timeline};

const STALE: &str = r#"{"format":"trireme-history","version":1}
{"client":1,"called":10,"returned":25,"op":"put","key":"a","value":"<1>"}
{"client":2,"called":30,"returned":40,"op":"get","key":"a","found":null}
{"client":3,"called":31,"op":"delete","key":"b"}
{"client":1,"called":50,"returned":60,"op":"append","key":"c","value":"x"}
{"client":1,"called":70,"returned":80,"op":"compare-and-set","key":"c","expected":"y","value":"z","done":false}
{"client":1,"called":90,"returned":99,"op":"scan","start":"b","end":"d","rows":[["c","x"]]}
"#;

#[test]
fn what_is_written_reads_back() {
    let history = format::read(STALE.as_bytes()).unwrap();
    assert_eq!(history.len(), 6);
    let mut written = Vec::new();
    format::native::write(&history, &mut written).unwrap();
    assert_eq!(format::read(&written[..]).unwrap(), history);
}

#[test]
fn a_counter_example_is_drawn() {
    let history = format::read(STALE.as_bytes()).unwrap();
    let Verdict::NotLinearizable(example) = check(history, &Limits::default()) else {
        panic!("a stale read was not found");
    };
    assert_eq!(timeline::label(&example.part[example.stuck]), "get a -> (no value)");
    let page = timeline::page("stale", &example);
    // Both operations on the key, with what is not HTML escaped.
    assert_eq!(page.matches("<rect").count(), 2);
    assert!(page.contains("put a = &lt;1&gt; -&gt; done"), "{page}");
    assert!(page.contains("class=\"stuck\""));
}

#[test]
fn what_is_no_history_is_refused_with_its_line() {
    let refused = |text: &str| match format::read(text.as_bytes()) {
        Ok(history) => panic!("read as {history:?}"),
        Err(error) => error.to_string(),
    };
    assert!(matches!(format::read(&b"\n"[..]), Err(FormatError::Empty)));
    let header = r#"{"format":"trireme-history","version":1}"#;
    assert!(refused(r#"{"format":"trireme-history","version":2}"#).starts_with("line 1: "));
    assert!(refused(&format!("{header}\n{{\"client\":1}}")).starts_with("line 2: "));
    let early = r#"{"client":1,"called":9,"returned":3,"op":"delete","key":"a"}"#;
    assert!(
        refused(&format!("{header}\n\n{early}")).starts_with("line 3: the operation was answered")
    );
    assert!(refused("INFO jepsen.util - 1 :ok :read 1").contains("has invoked nothing"));
    assert!(refused("{:process 1, :type :invoke, :f :jump, :key \"1\"}").contains(":jump"));
    assert!(refused("{:process 1, :type :ok, :f :get, :key \"1").contains("line 1"));
}
