//! The loop on an instance: take a job, run it, count it, decide to stay or leave.
