//! Who is woken when an instance ends. A guest that is gone says nothing on its connections: no kernel is
//! left there that would.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// The tasks that use one instance.
#[derive(Debug, Default)]
pub(super) struct Users(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    ended: bool,
    wakers: Vec<Option<Waker>>,
}

impl Users {
    /// Ready once the instance has ended; until then it wakes the task. `place` is the user's, and given
    /// back with [`Users::leave`].
    pub(super) fn poll_ended(&self, place: &mut Option<usize>, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.state();
        if state.ended {
            return Poll::Ready(());
        }
        let at = *place.get_or_insert_with(|| state.free_place());
        match &mut state.wakers[at] {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    pub(super) fn leave(&self, place: usize) {
        self.state().wakers[place] = None;
    }

    /// Wakes them all.
    pub(super) fn end(&self) {
        let mut state = self.state();
        state.ended = true;
        let wakers: Vec<Waker> = state.wakers.iter_mut().filter_map(Option::take).collect();
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn free_place(&mut self) -> usize {
        let free = self.wakers.iter().position(Option::is_none);
        free.unwrap_or_else(|| {
            self.wakers.push(None);
            self.wakers.len() - 1
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn the_end_wakes_each_user_once_and_is_there_for_later_ones() {
        let users = Users::default();
        let count = Arc::new(Count::default());
        let waker = Waker::from(Arc::clone(&count));
        let cx = Context::from_waker(&waker);
        let (mut first, mut second, mut third) = (None, None, None);
        assert!(users.poll_ended(&mut first, &cx).is_pending());
        assert!(users.poll_ended(&mut second, &cx).is_pending());
        assert!(users.poll_ended(&mut first, &cx).is_pending());
        assert_ne!(first, second);
        users.leave(second.take().expect("a place"));
        assert!(users.poll_ended(&mut third, &cx).is_pending());
        assert_eq!(third, Some(1), "a place is used again");
        users.end();
        assert_eq!(count.0.load(Ordering::SeqCst), 2);
        assert!(users.poll_ended(&mut second, &cx).is_ready());
    }
}
