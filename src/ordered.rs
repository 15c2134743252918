//! Builds ordered maps by inserting.
//!
//! `collect` and `From` first sort the pairs, with a sort that the compiler generates for each pair of types: about 5
//! KB of the program for each map.

/// Collects the pairs into a map. A later pair replaces an earlier one with the same key.
pub fn map<M: Default + Extend<P>, P>(pairs: impl IntoIterator<Item = P>) -> M {
    let mut map = M::default();
    map.extend(pairs);
    map
}
