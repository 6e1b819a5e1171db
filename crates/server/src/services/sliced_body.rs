//! Bodies of answers that are handed to HTTP/2 in slices.
//!
//! HTTP/2 takes a whole piece of a body once it has room for one byte, so a large answer to a client
//! that does not read would lie there, uncounted. In slices it stays here until there is room.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::future::BoxFuture;
use http_body::{Body, Frame, SizeHint};
use tonic::Status;
use tonic::codegen::{Service, http};
use tower_layer::Layer;

use crate::answers::NodeAnswers;

/// The bytes of a slice: two of HTTP/2's frames, so that nothing but large answers is cut.
const SLICE_BYTES: usize = 32 * 1024;

/// Has the bodies of a service's answers sliced.
#[derive(Clone)]
pub(crate) struct SliceBodies {
    pub(crate) answers: Arc<NodeAnswers>,
}

/// A service whose answers' bodies are sliced.
#[derive(Clone)]
pub(crate) struct Slicing<S> {
    inner: S,
    answers: Arc<NodeAnswers>,
}

impl<S> Layer<S> for SliceBodies {
    type Service = Slicing<S>;

    fn layer(&self, inner: S) -> Slicing<S> {
        Slicing { inner, answers: self.answers.clone() }
    }
}

impl<S, R> Service<http::Request<R>> for Slicing<S>
where
    S: Service<http::Request<R>, Response = http::Response<tonic::body::Body>>,
    S::Future: Send + 'static,
{
    type Response = http::Response<SlicedBody>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<R>) -> Self::Future {
        let (answering, answers) = (self.inner.call(request), self.answers.clone());
        Box::pin(async move {
            let body = |inner| SlicedBody { inner, rest: Bytes::new(), counted: 0, answers };
            Ok(answering.await?.map(body))
        })
    }
}

/// A body in slices, whose bytes count among the node's answers until the last is taken.
pub(crate) struct SlicedBody {
    inner: tonic::body::Body,
    /// What is left of a piece of `inner`.
    rest: Bytes,
    /// The bytes of that piece.
    counted: usize,
    answers: Arc<NodeAnswers>,
}

impl SlicedBody {
    fn slice(&mut self) -> Bytes {
        let slice = self.rest.split_to(self.rest.len().min(SLICE_BYTES));
        if self.rest.is_empty() {
            self.answers.subtract(std::mem::take(&mut self.counted));
        }
        slice
    }
}

impl Body for SlicedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if !self.rest.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(self.slice()))));
        }
        let Some(frame) = ready!(Pin::new(&mut self.inner).poll_frame(cx)) else {
            return Poll::Ready(None);
        };
        Poll::Ready(Some(match frame?.into_data() {
            Ok(data) if data.len() > SLICE_BYTES => {
                self.counted = data.len();
                self.answers.add(self.counted);
                self.rest = data;
                Ok(Frame::data(self.slice()))
            }
            Ok(data) => Ok(Frame::data(data)),
            Err(trailers) => Ok(trailers),
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

impl Drop for SlicedBody {
    fn drop(&mut self) {
        self.answers.subtract(self.counted);
    }
}
