//! Requests to stop a job, which a later agent must know.

use serde::{Deserialize, Serialize};

/// A request to stop a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopRequest {
    /// A user canceled the job: stop the script, run after_script.
    Cancel,
    /// The cloud interrupts the instance, for this reason: stop the scripts, upload artifacts, and do nothing else.
    Evict(String),
    /// The agent stops, for this reason: stop everything.
    Interrupt(String),
    /// The job has ended at GitLab: stop everything.
    Finished,
}

/// All requests to stop the job so far. For each kind, only the first request is kept, with its reason.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StopRequests(Vec<StopRequest>);

impl StopRequests {
    /// Adds a request, unless there is already a request of the same kind.
    pub fn add(&mut self, request: StopRequest) {
        let kind = std::mem::discriminant(&request);
        if self.0.iter().all(|known| std::mem::discriminant(known) != kind) {
            self.0.push(request);
        }
    }

    /// Adds the requests of an earlier agent, whose reasons have priority.
    pub fn add_earlier(&mut self, earlier: &Self) {
        for request in std::mem::replace(self, earlier.clone()).0 {
            self.add(request);
        }
    }

    /// Whether a user canceled the job.
    pub fn is_canceled(&self) -> bool {
        self.0.contains(&StopRequest::Cancel)
    }

    /// Whether the job has ended at GitLab.
    pub fn is_finished(&self) -> bool {
        self.0.contains(&StopRequest::Finished)
    }

    /// Why the cloud interrupts the instance.
    pub fn eviction(&self) -> Option<&str> {
        self.0.iter().find_map(|request| if let StopRequest::Evict(why) = request { Some(why.as_str()) } else { None })
    }

    /// Why the agent stops.
    pub fn interruption(&self) -> Option<&str> {
        self.0
            .iter()
            .find_map(|request| if let StopRequest::Interrupt(why) = request { Some(why.as_str()) } else { None })
    }

    /// Whether everything must stop at once.
    pub fn stops_job(&self) -> bool {
        self.is_finished() || self.interruption().is_some()
    }

    /// Whether the scripts must stop.
    pub fn stops_script(&self) -> bool {
        !self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_of_each_kind_counts() {
        let mut requests = StopRequests::default();
        assert!(!requests.stops_script());
        requests.add(StopRequest::Evict("a".to_owned()));
        requests.add(StopRequest::Evict("b".to_owned()));
        assert_eq!(requests.eviction(), Some("a"));
        assert!(requests.stops_script() && !requests.stops_job());
        let earlier = StopRequests(vec![StopRequest::Evict("earlier".to_owned()), StopRequest::Cancel]);
        requests.add(StopRequest::Interrupt("c".to_owned()));
        requests.add_earlier(&earlier);
        assert_eq!((requests.eviction(), requests.interruption()), (Some("earlier"), Some("c")));
        assert!(requests.is_canceled() && requests.stops_job() && !requests.is_finished());
    }
}
