//! What must outlive a crash of the agent: the job in hand, the count of jobs.
