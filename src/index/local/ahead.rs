//! Has an iterator run on a thread of its own, ahead of whoever takes its items.

use std::panic::resume_unwind;
use std::sync::mpsc::{self, Receiver, RecvError};
use std::thread::{self, JoinHandle};
use std::{io, vec};

/// How many bytes of items are passed on at once, and how often before the thread waits.
const BATCH_BYTES: usize = 128 << 10;
const BATCHES: usize = 4;

/// The same items as those of `items`, made on a thread with this name, as long as they are taken. `bytes` is about what
/// an item takes of memory.
///
/// # Errors
/// No thread can be started.
pub(crate) fn ahead<T: Send + 'static>(
    name: &str,
    mut items: impl Iterator<Item = T> + Send + 'static,
    bytes: impl Fn(&T) -> usize + Send + 'static,
) -> io::Result<Ahead<T>> {
    let (sender, batches) = mpsc::sync_channel(BATCHES);
    let run = move || {
        let mut is_last = false;
        while !is_last {
            let (mut batch, mut length) = (Vec::new(), 0);
            while length < BATCH_BYTES && !is_last {
                match items.next() {
                    Some(item) => {
                        length += size_of::<T>() + bytes(&item);
                        batch.push(item);
                    }
                    None => is_last = true,
                }
            }
            // Fails if nobody takes any more.
            is_last |= sender.send(batch).is_err();
        }
    };
    let thread = Some(thread::Builder::new().name(name.to_owned()).spawn(run)?);
    Ok(Ahead { batches, batch: Vec::new().into_iter(), thread })
}

/// The items of an iterator that runs on another thread. If it panics there, this does.
#[derive(Debug)]
pub(crate) struct Ahead<T> {
    batches: Receiver<Vec<T>>,
    batch: vec::IntoIter<T>,
    /// Gone when its end is known.
    thread: Option<JoinHandle<()>>,
}

impl<T> Iterator for Ahead<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        loop {
            if let Some(item) = self.batch.next() {
                return Some(item);
            }
            match self.batches.recv() {
                Ok(batch) => self.batch = batch.into_iter(),
                // The thread is gone: at the end of the items, or because it panicked, and then they were not all.
                Err(RecvError) => match self.thread.take().map(JoinHandle::join) {
                    Some(Err(panic)) => resume_unwind(panic),
                    Some(Ok(())) | None => return None,
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    #[test]
    fn the_items_are_the_same() {
        for count in [0, 1, 10_000] {
            let mut items = ahead("test", 0..count, |_| 1000).unwrap();
            assert!(items.by_ref().eq(0..count));
            assert_eq!(items.next(), None);
        }
    }

    #[test]
    fn nothing_is_made_that_is_not_taken() {
        let (sender, made) = mpsc::channel();
        let items = (0..1_000_000u32).map(move |n| {
            sender.send(n).unwrap();
        });
        let mut items = ahead("test", items, |()| BATCH_BYTES).unwrap();
        items.next().unwrap();
        drop(items);
        // Until the thread has dropped the sender.
        assert!(made.iter().count() < 2 * BATCHES);
    }

    #[test]
    fn a_panic_is_no_end() {
        let items = (0..10u32).inspect(|n| assert_ne!(*n, 5, "the fifth"));
        let mut items = ahead("test", items, |_| 0).unwrap();
        let panic = catch_unwind(AssertUnwindSafe(|| items.by_ref().count()));
        assert!(panic.is_err());
    }
}
