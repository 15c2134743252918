//! zip, gzip and tar+zstd: packing and unpacking that cannot leave the project directory.
