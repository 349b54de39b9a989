//! Records of finished requests are written a little later and many at a time: not between two
//! requests of a client that waits for its next reply.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::flight::{Clock, Flight};

/// How long a record may wait.
const DELAY: Duration = Duration::from_millis(20);

/// Records that may wait; who brings more writes them all.
const MOST: usize = 1024;

/// Finished requests whose records are still to be written; dropping a flight writes its record.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    #[expect(clippy::vec_box, reason = "a flight is moved around as a pointer")]
    flights: Mutex<Vec<Box<Flight>>>,
    /// Held while records are written, so that whoever asks for them next finds them all.
    writing: Mutex<()>,
    some: Notify,
}

impl Ledger {
    /// Takes a finished request.
    pub(super) fn put(&self, flight: Box<Flight>) {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        flights.push(flight);
        match flights.len() {
            1 => {
                drop(flights);
                self.some.notify_one();
            }
            MOST => {
                drop(flights);
                self.write();
            }
            _ => {}
        }
    }

    /// Writes every record that waits; when it returns, none is on its way.
    pub(crate) fn write(&self) {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = std::mem::take(&mut *flights);
        drop(flights);
        let clock = Clock::read();
        for flight in &mut all {
            flight.clock = Some(clock);
        }
    }

    /// Writes what has waited long enough, for ever.
    pub(crate) async fn keep(&self) {
        loop {
            self.some.notified().await;
            tokio::time::sleep(DELAY).await;
            self.write();
        }
    }
}
