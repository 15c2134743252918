//! Artifacts: to GitLab, and from the jobs this one depends on.
