//! Judges recorded histories of a key-value store: is there one order of the operations that explains
//! every answer and respects real time? (Herlihy and Wing, "Linearizability: a correctness condition
//! for concurrent objects", 1990.)
//!
//! - [`history`] has what is judged: operations, each with when it was called and what answered it.
//! - [`kv`] is the sequential specification of a key-value store, and divides a history into parts
//!   that can be judged by themselves: keys, joined where a scan reads several.
//! - [`search`] looks for an order: the algorithm of Wing and Gong with the memo of Lowe, as the
//!   checker Porcupine has it, bounded in steps and memory.
//! - [`format`](mod@format) reads histories: this project's own, and two that others recorded in.
//! - [`timeline`] draws what cannot be explained.
//!
//! An operation whose outcome is ambiguous may have taken effect at any time after its call, or never.
//! A bound that is reached gives the verdict [`Verdict::Unknown`], never a guess.
//!
//! ```
//! use trireme_checker::{check, format, search::Limits};
//!
//! let text = r#"{"format":"trireme-history","version":1}
//! {"client":1,"called":1,"returned":2,"op":"put","key":"a","value":"new"}
//! {"client":2,"called":3,"returned":4,"op":"get","key":"a","found":null}
//! "#;
//! let history = format::read(text.as_bytes()).unwrap();
//! let verdict = check(history, &Limits::default());
//! assert_eq!(verdict.name(), "not linearizable");
//! ```

pub mod format;
pub mod history;
pub mod kv;
mod register;
pub mod search;
pub mod timeline;
mod verdict;

pub use verdict::{CounterExample, Verdict, check};
