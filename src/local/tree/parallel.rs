//! Work on many files on all cores.

use std::panic::resume_unwind;
use std::thread;

/// With fewer items, one thread is faster than several.
const MIN_ITEMS: usize = 500;

/// The number of threads for work on many files. The number is computed only for such work, because that reads files of
/// control groups.
pub fn threads() -> usize {
    thread::available_parallelism().map_or(1, usize::from).min(8)
}

/// Maps and filters all items, in order; on all cores if there are many items.
pub fn filter_map_all<'i, I: Sync, T: Send>(items: &'i [I], map: impl Fn(&'i I) -> Option<T> + Sync) -> Vec<T> {
    let threads = if items.len() < MIN_ITEMS { 1 } else { threads() };
    if threads == 1 {
        return items.iter().filter_map(map).collect();
    }
    thread::scope(|scope| {
        let map = &map;
        let parts = items.chunks(items.len().div_ceil(threads));
        let parts: Vec<_> = parts.map(|part| scope.spawn(move || part.iter().filter_map(map).collect())).collect();
        let joined = parts.into_iter().map(|part| part.join().unwrap_or_else(|panic| resume_unwind(panic)));
        joined.collect::<Vec<Vec<T>>>().into_iter().flatten().collect()
    })
}
