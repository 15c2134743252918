//! Amazon Web Services, as far as an instance needs them: who may sign a request, and how.

pub mod credentials;
pub mod sign;
