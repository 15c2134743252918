//! A strict Auto Scaling service with one group. It holds instances by lifecycle hooks as AWS does, and counts
//! terminations. A request that is unsigned, lacks a mandatory parameter, or terminates an instance twice fails the
//! test.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::support::http::{Answer, Request};

/// A lifecycle hook that delays termination.
#[derive(Clone, Debug)]
pub struct Hook {
    pub name: String,
    pub timeout: Duration,
}

impl Hook {
    /// `seconds` is the heartbeat timeout.
    pub fn new(name: &str, seconds: u64) -> Self {
        Self { name: name.to_owned(), timeout: Duration::from_secs(seconds) }
    }
}

/// A recorded call.
#[allow(dead_code, reason = "shown when a test fails")]
#[derive(Clone, Debug)]
pub struct Call {
    pub action: String,
    pub parameters: BTreeMap<String, String>,
    pub at: Instant,
}

/// The group, with the instance under test.
#[derive(Debug)]
pub struct Group {
    pub name: String,
    pub minimum: u32,
    pub desired: u32,
    pub maximum: u32,
    pub protects_new: bool,
    /// Other instances: id, state, and whether they have scale-in protection.
    pub siblings: Vec<(String, String, bool)>,
    pub hooks: Vec<Hook>,
    /// `InService`, `Terminating:Wait`, `Terminating:Proceed`, `Terminated`, …
    pub state: String,
    pub is_protected: bool,
    /// How often a call terminated the instance, and how often that decremented the desired capacity.
    pub terminations: u32,
    pub decrements: u32,
    /// Hooks that currently hold the instance, with their timeouts.
    holding: Vec<(Hook, Instant)>,
    /// Hooks that were completed.
    pub completed: Vec<String>,
    /// Hooks that timed out.
    pub expired: Vec<String>,
    pub calls: Vec<Call>,
    pub violations: Vec<String>,
}

type Parameters = BTreeMap<String, String>;

impl Group {
    pub fn new() -> Self {
        Self {
            name: "builders".to_owned(),
            minimum: 0,
            desired: 3,
            maximum: 10,
            protects_new: false,
            siblings: Vec::new(),
            hooks: Vec::new(),
            state: "InService".to_owned(),
            is_protected: false,
            terminations: 0,
            decrements: 0,
            holding: Vec::new(),
            completed: Vec::new(),
            expired: Vec::new(),
            calls: Vec::new(),
            violations: Vec::new(),
        }
    }

    /// Whether the instance is terminating or terminated.
    pub fn is_ending(&self) -> bool {
        self.state.starts_with("Terminat")
    }

    /// Starts the termination of the instance; hooks delay it.
    pub fn end(&mut self) {
        self.holding = self.hooks.iter().map(|hook| (hook.clone(), Instant::now() + hook.timeout)).collect();
        self.state = if self.hooks.is_empty() { "Terminating" } else { "Terminating:Wait" }.to_owned();
    }

    /// Releases hooks that have timed out.
    pub fn expire_hooks(&mut self) {
        let now = Instant::now();
        let (late, held): (Vec<_>, Vec<_>) = self.holding.drain(..).partition(|(_, until)| *until < now);
        self.holding = held;
        self.expired.extend(late.into_iter().map(|(hook, _)| hook.name));
        self.proceed();
    }

    fn proceed(&mut self) {
        if self.state == "Terminating:Wait" && self.holding.is_empty() {
            self.state = "Terminating:Proceed".to_owned();
        }
    }

    /// Responds to a call whose signature is valid.
    pub fn answer(&mut self, instance: &str, request: &Request) -> Answer {
        let parameters = parameters(&request.body);
        let action = parameters.get("Action").cloned().unwrap_or_default();
        let known = ACTIONS.iter().find(|(name, ..)| *name == action);
        let Some((_, mandatory, optional)) = known else {
            self.violations.push(format!("the action `{action}` is not expected"));
            return refusal(400, "InvalidAction", "Could not find operation");
        };
        self.calls.push(Call { action: action.clone(), parameters: parameters.clone(), at: Instant::now() });
        if parameters.get("Version").map(String::as_str) != Some("2011-01-01") {
            self.violations.push(format!("{action} has another version"));
        }
        for name in parameters.keys() {
            if !["Action", "Version"].contains(&name.as_str())
                && !mandatory.contains(&name.as_str())
                && !optional.contains(&name.as_str())
            {
                self.violations.push(format!("{action} has no parameter {name}"));
            }
        }
        if let Some(missing) = mandatory.iter().find(|name| parameters.get(**name).is_none_or(String::is_empty)) {
            self.violations.push(format!("{action} needs {missing}"));
            return refusal(400, "ValidationError", &format!("{missing} is mandatory"));
        }
        let matches = |name: &str, value: &str| parameters.get(name).is_none_or(|given| given == value);
        if !matches("AutoScalingGroupName", &self.name) {
            return refusal(400, "ValidationError", "AutoScalingGroup name not found - no such group");
        }
        if !matches("InstanceId", instance) || !matches("InstanceIds.member.1", instance) {
            let message = "Instance Id not found - No managed instance found for instance ID";
            return refusal(400, "ValidationError", message);
        }
        match action.as_str() {
            "TerminateInstanceInAutoScalingGroup" => self.terminate(instance, &parameters),
            "DescribeAutoScalingInstances" => self.describe_instance(instance),
            "DescribeLifecycleHooks" => self.describe_hooks(),
            "DescribeAutoScalingGroups" => self.describe(instance, &parameters),
            "SetDesiredCapacity" => self.set_desired(&parameters),
            "SetInstanceProtection" => self.protect(instance, &parameters),
            _ => self.complete_or_extend_hook(instance, &parameters),
        }
    }

    fn terminate(&mut self, instance: &str, parameters: &Parameters) -> Answer {
        let decrement = match parameters["ShouldDecrementDesiredCapacity"].as_str() {
            "true" => true,
            "false" => false,
            other => {
                self.violations.push(format!("ShouldDecrementDesiredCapacity={other}"));
                return refusal(400, "ValidationError", "not a boolean");
            }
        };
        if self.is_ending() {
            self.violations.push(format!("{instance} is terminated a second time, in state {}", self.state));
            return refusal(400, "ValidationError", "Instance is already terminating");
        }
        if decrement && self.desired <= self.minimum {
            let message = format!(
                "Currently, desiredSize equals minSize ({}). Terminating instance without replacement will violate \
                 group's min size constraint. Either set shouldDecrementDesiredCapacity flag to false or lower group's \
                 min size.",
                self.minimum
            );
            return refusal(400, "ValidationError", &message);
        }
        self.terminations += 1;
        if decrement {
            self.desired -= 1;
            self.decrements += 1;
        }
        self.end();
        let activity = format!(
            "<Activity><ActivityId>a-1</ActivityId><Description>Terminating EC2 instance: {instance}</Description><StatusCode>InProgress</StatusCode><Progress>0</Progress></Activity>"
        );
        result("TerminateInstanceInAutoScalingGroup", &activity)
    }

    fn describe_instance(&self, instance: &str) -> Answer {
        let items = format!(
            "<AutoScalingInstances><member><InstanceId>{instance}</InstanceId><AutoScalingGroupName>{}\
             </AutoScalingGroupName><AvailabilityZone>eu-west-1a</AvailabilityZone><LifecycleState>{}</LifecycleState>\
             <HealthStatus>HEALTHY</HealthStatus><ProtectedFromScaleIn>{}</ProtectedFromScaleIn></member>\
             </AutoScalingInstances>",
            self.name, self.state, self.is_protected
        );
        result("DescribeAutoScalingInstances", &items)
    }

    /// The whole group; an empty result for another instance.
    fn describe(&self, instance: &str, parameters: &Parameters) -> Answer {
        if parameters["AutoScalingGroupNames.member.1"] != self.name {
            return result("DescribeAutoScalingGroups", "<AutoScalingGroups/>");
        }
        let member = |id: &str, state: &str, protected: bool| {
            format!(
                "<member><InstanceId>{id}</InstanceId><AvailabilityZone>eu-west-1a</AvailabilityZone><LifecycleState>\
                 {state}</LifecycleState><HealthStatus>Healthy</HealthStatus><ProtectedFromScaleIn>{protected}\
                 </ProtectedFromScaleIn></member>"
            )
        };
        let mut members = member(instance, &self.state, self.is_protected);
        members.extend(self.siblings.iter().map(|(id, state, protected)| member(id, state, *protected)));
        let group = format!(
            "<AutoScalingGroups><member><AutoScalingGroupName>{}</AutoScalingGroupName><MinSize>{}</MinSize><MaxSize>{}\
             </MaxSize><DesiredCapacity>{}</DesiredCapacity><Instances>{members}</Instances><SuspendedProcesses/>\
             <NewInstancesProtectedFromScaleIn>{}</NewInstancesProtectedFromScaleIn></member></AutoScalingGroups>",
            self.name, self.minimum, self.maximum, self.desired, self.protects_new
        );
        result("DescribeAutoScalingGroups", &group)
    }

    fn set_desired(&mut self, parameters: &Parameters) -> Answer {
        let desired = parameters["DesiredCapacity"].parse().ok();
        let Some(desired) = desired.filter(|desired| (self.minimum..=self.maximum).contains(desired)) else {
            self.violations.push(format!("DesiredCapacity={}", parameters["DesiredCapacity"]));
            return refusal(400, "ValidationError", "New SetDesiredCapacity value is out of bounds");
        };
        if desired <= self.desired {
            self.violations
                .push(format!("the desired capacity of {} is set to {desired}, which does not raise it", self.desired));
        }
        self.desired = desired;
        result("SetDesiredCapacity", "")
    }

    fn describe_hooks(&self) -> Answer {
        let hook = |name: &str, transition: &str, seconds: u64| {
            format!(
                "<member><AutoScalingGroupName>{}</AutoScalingGroupName><LifecycleHookName>{name}</LifecycleHookName>\
                 <LifecycleTransition>autoscaling:{transition}</LifecycleTransition><HeartbeatTimeout>{seconds}\
                 </HeartbeatTimeout><GlobalTimeout>172800</GlobalTimeout><DefaultResult>ABANDON</DefaultResult></member>",
                self.name
            )
        };
        let mut items = hook("launching", "EC2_INSTANCE_LAUNCHING", 300);
        for one in &self.hooks {
            items += &hook(&one.name, "EC2_INSTANCE_TERMINATING", one.timeout.as_secs());
        }
        result("DescribeLifecycleHooks", &format!("<LifecycleHooks>{items}</LifecycleHooks>"))
    }

    fn protect(&mut self, instance: &str, parameters: &Parameters) -> Answer {
        if self.state != "InService" {
            let message = format!("The instance {instance} is not in InService or EnteringStandby or Standby.");
            return refusal(400, "ValidationError", &message);
        }
        match parameters["ProtectedFromScaleIn"].as_str() {
            "true" => self.is_protected = true,
            "false" => self.is_protected = false,
            other => self.violations.push(format!("ProtectedFromScaleIn={other}")),
        }
        result("SetInstanceProtection", "")
    }

    /// CompleteLifecycleAction and RecordLifecycleActionHeartbeat.
    fn complete_or_extend_hook(&mut self, instance: &str, parameters: &Parameters) -> Answer {
        let name = &parameters["LifecycleHookName"];
        if !self.hooks.iter().any(|hook| hook.name == *name) {
            return refusal(400, "ValidationError", &format!("No Lifecycle Hook found with name {name}"));
        }
        let Some(at) = self.holding.iter().position(|(hook, _)| hook.name == *name) else {
            let message = format!("No active Lifecycle Action found with instance ID {instance}");
            return refusal(400, "ValidationError", &message);
        };
        let Some(outcome) = parameters.get("LifecycleActionResult") else {
            let (hook, until) = &mut self.holding[at];
            *until = Instant::now() + hook.timeout;
            return result("RecordLifecycleActionHeartbeat", "");
        };
        if outcome != "CONTINUE" {
            self.violations.push(format!("LifecycleActionResult={outcome}"));
        }
        self.completed.push(self.holding.remove(at).0.name);
        self.proceed();
        result("CompleteLifecycleAction", "")
    }
}

/// Every action with its mandatory and optional parameters.
const ACTIONS: [(&str, &[&str], &[&str]); 8] = [
    ("TerminateInstanceInAutoScalingGroup", &["InstanceId", "ShouldDecrementDesiredCapacity"], &[]),
    ("DescribeAutoScalingInstances", &["InstanceIds.member.1"], &[]),
    ("DescribeLifecycleHooks", &["AutoScalingGroupName"], &[]),
    ("DescribeAutoScalingGroups", &["AutoScalingGroupNames.member.1"], &[]),
    ("SetDesiredCapacity", &["AutoScalingGroupName", "DesiredCapacity"], &["HonorCooldown"]),
    ("SetInstanceProtection", &["AutoScalingGroupName", "InstanceIds.member.1", "ProtectedFromScaleIn"], &[]),
    (
        "CompleteLifecycleAction",
        &["AutoScalingGroupName", "LifecycleHookName", "InstanceId", "LifecycleActionResult"],
        &[],
    ),
    ("RecordLifecycleActionHeartbeat", &["AutoScalingGroupName", "LifecycleHookName", "InstanceId"], &[]),
];

/// A response of the service.
pub fn result(action: &str, content: &str) -> Answer {
    Answer::new(200).with("Content-Type", "text/xml").body(format!(
        "<{action}Response xmlns=\"http://autoscaling.amazonaws.com/doc/2011-01-01/\"><{action}Result>{content}\
         </{action}Result><ResponseMetadata><RequestId>r-1</RequestId></ResponseMetadata></{action}Response>"
    ))
}

/// An error response of the service.
pub fn refusal(status: u16, code: &str, message: &str) -> Answer {
    Answer::new(status).with("Content-Type", "text/xml").body(format!(
        "<ErrorResponse xmlns=\"http://autoscaling.amazonaws.com/doc/2011-01-01/\"><Error><Type>Sender</Type>\
         <Code>{code}</Code><Message>{message}</Message></Error><RequestId>r-1</RequestId></ErrorResponse>"
    ))
}

/// The parameters of a call.
pub fn parameters(body: &[u8]) -> Parameters {
    let text = String::from_utf8_lossy(body).into_owned();
    let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (unescape(name), unescape(value))).collect()
}

fn unescape(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        let digits = tail.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.filter(|_| *first == b'%').and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => bytes.push(*first),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
