//! Sources: git, on ground that an earlier job may have prepared.
