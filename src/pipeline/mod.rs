//! A `.gitlab-ci.yml` as a local pipeline, for `mayfly exec`.
