//! What a connection is counted as.
//!
//! Every connection begins with a place among those that ask and are answered. One that stays to watch moves to
//! another room, or a few hundred watchers would leave no place for the control plane. It does not move back: it
//! was let in by a token, and there is room for many.

use std::sync::{Arc, Mutex};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The seat of one connection. Given up when it is dropped.
#[derive(Clone, Debug)]
pub(super) struct Seat {
    held: Arc<Mutex<Held>>,
    watchers: Arc<Semaphore>,
}

#[derive(Debug)]
struct Held {
    watches: bool,
    _permit: OwnedSemaphorePermit,
}

/// There is no room for another watcher.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Crowded;

impl Seat {
    /// An ordinary one, which may become one of `watchers`.
    pub(super) fn new(place: OwnedSemaphorePermit, watchers: Arc<Semaphore>) -> Self {
        Seat { held: Arc::new(Mutex::new(Held { watches: false, _permit: place })), watchers }
    }

    /// Moves the connection to the watchers, if it is not there yet, and frees its place among the others.
    pub(super) fn watch(&self) -> Result<(), Crowded> {
        // Nothing in here panics, and half done it would still be a seat.
        let mut held = self.held.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if !held.watches {
            let permit = self.watchers.clone().try_acquire_owned().map_err(|_| Crowded)?;
            *held = Held { watches: true, _permit: permit };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watcher_leaves_its_place_to_others_and_is_counted_once() {
        let (places, watchers) = (Arc::new(Semaphore::new(2)), Arc::new(Semaphore::new(1)));
        let seat = || {
            let place = places.clone().try_acquire_owned().expect("one is free");
            Seat::new(place, watchers.clone())
        };
        let (first, second) = (seat(), seat());
        assert_eq!(places.available_permits(), 0);
        assert_eq!((first.watch(), first.watch()), (Ok(()), Ok(())));
        assert_eq!((places.available_permits(), watchers.available_permits()), (1, 0));
        assert_eq!(second.watch(), Err(Crowded));
        assert_eq!(places.available_permits(), 1, "whoever is turned away keeps its place");
        drop((first, second));
        assert_eq!((places.available_permits(), watchers.available_permits()), (2, 1));
    }
}
