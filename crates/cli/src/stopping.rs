//! What a process that serves stops for.

use std::io::Read;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

/// Returns what resolves when the process is asked to stop: by SIGINT, SIGTERM, or the end of its
/// terminal (SIGHUP, unless it was started to ignore that, as by `nohup`).
pub(crate) fn stop_signal(at_stdin_end: bool) -> anyhow::Result<impl Future<Output = ()>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let ignores_hangup = ignores(SignalKind::hangup());
    let mut hangup = if ignores_hangup { None } else { Some(signal(SignalKind::hangup())?) };
    let (ended, stdin_end) = oneshot::channel::<()>();
    if at_stdin_end {
        // Reading standard input blocks, and may do so for as long as the process lives.
        std::thread::spawn(move || {
            let mut byte = [0];
            while matches!(std::io::stdin().read(&mut byte), Ok(count) if count > 0) {}
            drop(ended);
        });
    } else {
        // Kept for good, so that the receiver never resolves.
        std::mem::forget(ended);
    }
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            () = heard(hangup.as_mut()) => {}
            _ = stdin_end => {}
        }
    })
}

async fn heard(signal: Option<&mut Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

/// Returns true if this process ignores the signal, as the kernel says.
fn ignores(kind: SignalKind) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    ignored_signals(&status) >> (kind.as_raw_value() - 1) & 1 == 1
}

fn ignored_signals(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ignored_signals_are_read_from_the_status() {
        let status = "Name:\ttrireme\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\n";
        assert_eq!(ignored_signals(status), 0x1001);
        assert_eq!(ignored_signals("Name:\ttrireme\n"), 0);
    }
}
