//! Damaged and hostile bytes in place of a recorded history.

use trireme_checker::format;
use trireme_fuzz::{Fuzz, Verdict};

const NATIVE: &str = r#"{"format":"trireme-history","version":1}
{"client":1,"called":10,"returned":25,"op":"put","key":"a","value":"1"}
{"client":2,"called":12,"returned":20,"op":"get","key":"a","found":null}
{"client":1,"called":30,"op":"delete","key":"a"}
{"client":2,"called":31,"returned":40,"op":"compare-and-set","key":"a","expected":"1","value":"2","done":true}
{"client":2,"called":41,"returned":60,"op":"scan","start":"a","end":"m","rows":[["a","2"]]}
"#;

const EDN: &str = r#"{:process 0, :type :invoke, :f :put, :key "a", :value "x"}
{:process 1, :type :invoke, :f :get, :key "a", :value nil}
{:process 0, :type :ok, :f :put, :key "a", :value "x"}
{:process 1, :type :ok, :f :get, :key "a", :value "x"}
"#;

const JEPSEN: &str = "INFO  jepsen.util - 0\t:invoke\t:write\t3\n\
                      INFO  jepsen.util - 0\t:ok\t:write\t3\n";

#[test]
fn fuzz_history() {
    Fuzz::new("fuzz_history", [NATIVE, EDN, JEPSEN]).run(|bytes| {
        let read = format::read(bytes);
        if let Ok(history) = &read {
            let mut written = Vec::new();
            format::native::write(history, &mut written).expect("a Vec always grows");
            let again = format::read(&written[..]).expect("what was written is read");
            assert_eq!(&again, history);
        }
        Verdict::from(&read)
    });
}
