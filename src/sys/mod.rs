//! Calls of the operating system that `nix` lacks, each behind one small safe function.
#![allow(unsafe_code)]
