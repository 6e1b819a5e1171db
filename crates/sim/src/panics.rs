//! A panic in any task of a run ends the run: the runtime alone would only end the task.

use std::cell::RefCell;
use std::panic;
use std::sync::{Arc, Once};

use parking_lot::Mutex;
use tokio::sync::Notify;

thread_local! {
    static WATCH: RefCell<Option<Watch>> = const { RefCell::new(None) };
}

/// What watches for the panics of the calling thread.
#[derive(Clone, Default)]
pub(crate) struct Watch {
    shared: Arc<(Mutex<Option<String>>, Notify)>,
}

/// Has the panics of the calling thread be noticed from now on.
pub(crate) fn watch() -> Watch {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let watch = WATCH.with(|watch| watch.borrow().clone());
            match watch {
                Some(watch) if !trireme_storage::is_catching_panics() => {
                    watch.shared.0.lock().get_or_insert(format!("no task panics: {info}"));
                    watch.shared.1.notify_one();
                }
                Some(_) => {}
                None => before(info),
            }
        }));
    });
    let watch = Watch::default();
    WATCH.with(|slot| *slot.borrow_mut() = Some(watch.clone()));
    watch
}

impl Watch {
    /// Returns the panic, when there was one.
    pub(crate) async fn panicked(&self) -> String {
        loop {
            if let Some(reason) = self.shared.0.lock().clone() {
                return reason;
            }
            self.shared.1.notified().await;
        }
    }
}
