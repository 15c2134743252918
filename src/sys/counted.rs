//! Counts the memory of each thread, for tests of limits.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The allocator of the tests.
pub struct CountingAllocator;

#[derive(Clone, Copy)]
struct Counts {
    held: isize,
    peak: isize,
    allocations: usize,
}

thread_local! {
    static COUNTS: Cell<Counts> = const { Cell::new(Counts { held: 0, peak: 0, allocations: 0 }) };
}

fn count(change: isize) {
    // `try_with` instead of `with`: the thread may be ending.
    let _ = COUNTS.try_with(|counts| {
        let Counts { held, peak, allocations } = counts.get();
        let held = held + change;
        counts.set(Counts { held, peak: peak.max(held), allocations: allocations + usize::from(change > 0) });
    });
}

fn size(bytes: usize) -> isize {
    bytes.cast_signed()
}

// SAFETY: every call goes to the allocator of the system; the counts allocate nothing.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(size(layout.size()));
        // SAFETY: the caller fulfils the same contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-size(layout.size()));
        // SAFETY: the caller fulfils the same contract.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(size(layout.size()));
        // SAFETY: the caller fulfils the same contract.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, length: usize) -> *mut u8 {
        count(size(length) - size(layout.size()));
        // SAFETY: the caller fulfils the same contract.
        unsafe { System.realloc(pointer, layout, length) }
    }
}

/// The memory that a call used on this thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryUse {
    /// The most bytes that the call held at once, in addition to those that the thread held before the call.
    pub bytes: usize,
    /// The number of allocations and of growing reallocations.
    pub allocations: usize,
}

/// Runs a function, and returns its result and the memory that it used.
pub fn measure<T>(run: impl FnOnce() -> T) -> (T, MemoryUse) {
    let before = COUNTS.get().held;
    COUNTS.set(Counts { held: before, peak: before, allocations: 0 });
    let result = run();
    let Counts { peak, allocations, .. } = COUNTS.get();
    (result, MemoryUse { bytes: (peak - before).cast_unsigned(), allocations })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_was_held_at_once() {
        let ((), used) = measure(|| {
            for _ in 0..3 {
                drop(std::hint::black_box(vec![0_u8; 5000]));
            }
        });
        assert_eq!(used, MemoryUse { bytes: 5000, allocations: 3 });
        let (kept, used) = measure(|| (vec![1_u8; 300], vec![2_u8; 200]));
        assert_eq!((kept.0.len(), used.bytes, used.allocations), (300, 500, 2));
    }
}
