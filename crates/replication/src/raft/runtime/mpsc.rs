//! The channels of openraft: queues that take room as they fill. Each Raft replica has some ten.

use std::future::Future;

use futures::TryFutureExt;
use openraft::OptionalSend;
use openraft::async_runtime::mpsc::{
    Mpsc, MpscReceiver, MpscSender, MpscWeakSender, SendError, TryRecvError,
};

use crate::queue::{Nothing, Receiver, Sender, WeakSender, queue};

/// The channels.
pub(in crate::raft) struct RuntimeMpsc;

impl Mpsc for RuntimeMpsc {
    type Sender<T: OptionalSend> = Sender<T>;
    type Receiver<T: OptionalSend> = Receiver<T>;
    type WeakSender<T: OptionalSend> = WeakSender<T>;

    fn channel<T: OptionalSend>(buffer: usize) -> (Sender<T>, Receiver<T>) {
        queue(buffer)
    }
}

impl<T: OptionalSend> MpscSender<RuntimeMpsc, T> for Sender<T> {
    fn send(&self, element: T) -> impl Future<Output = Result<(), SendError<T>>> + OptionalSend {
        Self::send(self, element).map_err(SendError)
    }

    fn downgrade(&self) -> WeakSender<T> {
        Self::downgrade(self)
    }
}

impl<T: OptionalSend> MpscReceiver<T> for Receiver<T> {
    fn recv(&mut self) -> impl Future<Output = Option<T>> + OptionalSend {
        Self::recv(self)
    }

    fn try_recv(&mut self) -> Result<T, TryRecvError> {
        Self::try_recv(self).map_err(|nothing| match nothing {
            Nothing::Yet => TryRecvError::Empty,
            Nothing::Left => TryRecvError::Disconnected,
        })
    }
}

impl<T: OptionalSend> MpscWeakSender<RuntimeMpsc, T> for WeakSender<T> {
    fn upgrade(&self) -> Option<Sender<T>> {
        Self::upgrade(self)
    }
}
