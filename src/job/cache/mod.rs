//! Caches: kept between jobs, on this instance or in an object store.
