//! Counts the instances of a group for the planner.

use crate::instance::CapacityChange;

/// The instances of a group, counted; kept up to date while steps are planned.
#[derive(Clone, Copy, Debug)]
pub struct InstanceCounts {
    /// The desired capacity.
    pub desired: u32,
    /// The number of instances that start or run.
    pub live: u32,
    /// The number of these whose agent leaves.
    pub leaving: u32,
    /// The number of these with an agent that stays.
    pub ready: u32,
    /// The number of instances that stay, including those that the group will start.
    pub staying: u32,
}

impl InstanceCounts {
    /// The number of instances in `staying` without an agent.
    pub fn starting(&self) -> u32 {
        self.staying.saturating_sub(self.ready)
    }

    /// Accounts for the termination of an instance whose agent leaves; it is not part of `staying`.
    pub fn remove_leaving(&mut self, wanted: u32, least: u32) -> CapacityChange {
        self.live = self.live.saturating_sub(1);
        self.leaving = self.leaving.saturating_sub(1);
        if self.staying >= wanted && self.desired > least {
            self.desired = self.desired.saturating_sub(1);
            return CapacityChange::Decrement;
        }
        self.staying = self.staying.saturating_add(1);
        CapacityChange::Keep
    }

    /// Accounts for the termination of an instance in `staying`.
    pub fn remove_staying(&mut self, wanted: u32, least: u32) -> CapacityChange {
        self.live = self.live.saturating_sub(1);
        if self.staying > wanted && self.desired > least {
            self.staying = self.staying.saturating_sub(1);
            self.desired = self.desired.saturating_sub(1);
            return CapacityChange::Decrement;
        }
        CapacityChange::Keep
    }
}
