//! What a long operation tells while it runs.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// One piece of news.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What is done, e.g. `layer 1: python3-minimal`.
    pub what: String,
    /// How far it is.
    pub state: StepState,
}

/// How far a step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepState {
    /// It begins.
    Begun,
    /// So many bytes of a known total are there.
    Bytes {
        /// So far.
        done: u64,
        /// In all.
        total: u64,
    },
    /// It ended well.
    Done {
        /// How long it took.
        took: Duration,
    },
    /// Nothing was to do: the store has the result.
    Cached,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, state } = self;
        match state {
            StepState::Begun => write!(f, "{what} …"),
            StepState::Bytes { done, total } => {
                write!(f, "{what}: {} of {} MiB", done >> 20, total.div_ceil(1 << 20))
            }
            StepState::Done { took } => write!(f, "{what}: done in {:.1} s", took.as_secs_f64()),
            StepState::Cached => write!(f, "{what}: already there"),
        }
    }
}

type Listener = dyn Fn(&Step) + Send + Sync;

/// Who is told. Called on the thread that works; it must not block. The default tells nobody.
#[derive(Clone, Default)]
pub struct Progress(Option<Arc<Listener>>);

impl Progress {
    /// Tells `listener`.
    pub fn to(listener: impl Fn(&Step) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(listener)))
    }

    pub(crate) fn tell(&self, what: &str, state: StepState) {
        if let Some(listener) = &self.0 {
            listener(&Step { what: what.to_owned(), state });
        }
    }

    /// Tells beginning and end of `work`; the end only if it succeeds.
    pub(crate) fn step<T, E>(
        &self,
        what: &str,
        work: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        self.tell(what, StepState::Begun);
        let started = Instant::now();
        let result = work()?;
        self.tell(what, StepState::Done { took: started.elapsed() });
        Ok(result)
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Progress(listener)" } else { "Progress(nobody)" })
    }
}
