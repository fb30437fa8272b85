//! Replies of an engine.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_channel::oneshot;

use super::error::Error;

/// Result of an engine's work, which arrives later. Dropping it cancels work that has not begun, except commits.
#[derive(Debug)]
pub struct Reply<T, E = Error>(State<T, E>);

#[derive(Debug)]
enum State<T, E> {
    Ready(Option<Result<T, E>>),
    Pending(oneshot::Receiver<Result<T, E>>),
}

impl<T, E: From<Error>> Reply<T, E> {
    /// Creates a reply that has already arrived.
    pub fn ready(result: Result<T, E>) -> Self {
        Self(State::Ready(Some(result)))
    }

    /// Creates a reply from the receiver of its result, or from the error of queueing the work.
    pub fn queued(queued: Result<oneshot::Receiver<Result<T, E>>, Error>) -> Self {
        match queued {
            Ok(receiver) => Self(State::Pending(receiver)),
            Err(error) => Self::ready(Err(error.into())),
        }
    }
}

impl<T, E> Unpin for Reply<T, E> {}

impl<T, E: From<Error>> Future for Reply<T, E> {
    type Output = Result<T, E>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            State::Ready(result) => {
                Poll::Ready(result.take().expect("a future is not polled after its result"))
            }
            State::Pending(receiver) => Pin::new(receiver)
                .poll(context)
                // The work panicked, or the engine stopped before it began.
                .map(|received| received.unwrap_or_else(|_| Err(Error::Stopped.into()))),
        }
    }
}
