//! Reads the keywords that decide when and how often a job runs.

use std::sync::Arc;
use std::time::Duration;

use super::reader::KeywordReader;
use crate::pipeline::duration;
use crate::pipeline::plan::{AllowFailure, Delay, Retry, When};
use crate::pipeline::problem::Class;
use crate::pipeline::suggest::did_you_mean;
use crate::pipeline::syntax::Node;

/// The number of retries that a job may have, as on GitLab.
const MAX_RETRIES: i64 = 2;

/// The number of tags that a job may have; GitLab refuses 50.
const MAX_TAGS: usize = 49;

/// All values that GitLab accepts in `retry:when`; a local run produces only a few of them as failure reasons.
const RETRY_REASONS: [&str; 47] = [
    "always",
    "unknown_failure",
    "script_failure",
    "api_failure",
    "stuck_or_timeout_failure",
    "runner_system_failure",
    "runner_unsupported",
    "runner_provisioning_timeout",
    "runner_configuration_error",
    "runner_external_dependency_failure",
    "runner_interrupted",
    "image_pull_failure",
    "job_canceled",
    "stale_schedule",
    "job_execution_timeout",
    "job_execution_server_timeout",
    "job_router_failure",
    "job_token_expired",
    "archived_failure",
    "unmet_prerequisites",
    "scheduler_failure",
    "data_integrity_failure",
    "missing_dependency_failure",
    "forward_deployment_failure",
    "failed_outdated_deployment_job",
    "protected_environment_failure",
    "environment_creation_failure",
    "deployment_rejected",
    "user_blocked",
    "project_deleted",
    "ci_quota_exceeded",
    "pipeline_loop_detected",
    "no_matching_runner",
    "trace_size_exceeded",
    "builds_disabled",
    "ip_restriction_failure",
    "secrets_provider_not_found",
    "duo_workflow_not_allowed",
    "insufficient_bridge_permissions",
    "insufficient_upstream_permissions",
    "downstream_bridge_project_not_found",
    "upstream_bridge_project_not_found",
    "invalid_bridge_trigger",
    "bridge_pipeline_is_child_pipeline",
    "downstream_pipeline_creation_failed",
    "reached_max_descendant_pipelines_depth",
    "reached_max_pipeline_hierarchy_size",
];

/// The maximum delay, as on GitLab: a week.
const MAX_DELAY: Duration = Duration::from_secs(7 * 86_400);

/// The maximum timeout, as on GitLab: a month.
const MAX_TIMEOUT: Duration = Duration::from_secs(30 * 86_400);

/// `when` of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleWhen {
    /// The rule excludes the job, or the pipeline.
    Never,
    Run(When),
}

impl KeywordReader<'_, '_> {
    /// Reads `when` of a job.
    pub fn job_when(&mut self, node: &Node) -> Option<When> {
        match node.text().and_then(|text| When::from_word(text)) {
            Some(when) => Some(when),
            None => self.bad_when(node, "when", &When::ALL.map(When::word)),
        }
    }

    /// Reads `when` of a rule.
    pub fn rule_when(&mut self, node: &Node, keyword: &str) -> Option<RuleWhen> {
        let text = node.text().map_or("", |text| text);
        if text == "never" {
            return Some(RuleWhen::Never);
        }
        match When::from_word(text) {
            Some(when) => Some(RuleWhen::Run(when)),
            None => {
                let words: Vec<&str> = When::ALL.map(When::word).into_iter().chain(["never"]).collect();
                self.bad_when(node, keyword, &words)
            }
        }
    }

    /// Reports a value of `when` that is none of the allowed words.
    fn bad_when<T>(&mut self, node: &Node, keyword: &str, words: &[&str]) -> Option<T> {
        let value = node.printed().unwrap_or_else(|| node.kind().into());
        let hint = if &*value == "never" {
            "; `never` is allowed in rules only".to_owned()
        } else {
            did_you_mean(&value, words)
        };
        let message = format!("`{keyword}` must be one of {}, not `{value}`{hint}", words.join(", "));
        self.error(Class::BadWhen, node.at, message)
    }

    /// Reads `start_in`, the delay of `when: delayed`.
    pub fn start_in(&mut self, node: &Node, keyword: &str) -> Option<Delay> {
        let text = self.text(node, keyword)?;
        match duration::parse(&text).filter(|duration| *duration <= MAX_DELAY) {
            Some(duration) => Some(Delay { text, duration }),
            None => {
                let message = format!("`{keyword}: {text}` is not a duration of up to a week, such as `30 minutes`");
                self.error(Class::StartIn, node.at, message)
            }
        }
    }

    pub fn tags(&mut self, node: &Node) -> Option<Vec<Arc<str>>> {
        let tags = self.flat_texts(node, "tags")?;
        match tags.len() {
            0..=MAX_TAGS => Some(tags),
            count => self.bad_count(node, "tags", count, &format!("up to {MAX_TAGS}")),
        }
    }

    pub fn timeout(&mut self, node: &Node) -> Option<Duration> {
        let text = self.text(node, "timeout")?;
        match duration::parse(&text).filter(|duration| *duration <= MAX_TIMEOUT) {
            Some(duration) => Some(duration),
            None => self.bad_value(node, "timeout", "a duration of up to a month, such as `1h 30m`"),
        }
    }

    pub fn allow_failure(&mut self, node: &Node) -> Option<AllowFailure> {
        if let Some(allowed) = node.boolean() {
            return Some(if allowed { AllowFailure::Yes } else { AllowFailure::No });
        }
        if node.mapping().is_none() {
            return self.bad_value(node, "allow_failure", "true, false or a mapping with `exit_codes`");
        }
        self.check_mapping(node, "allow_failure", &["exit_codes"])?;
        match node.get("exit_codes") {
            Some(codes) => Some(AllowFailure::ExitCodes(self.integers(codes, "allow_failure:exit_codes")?)),
            None => self.missing_key(node, "allow_failure", "`exit_codes`"),
        }
    }

    pub fn retry(&mut self, node: &Node) -> Option<Retry> {
        if node.mapping().is_none() {
            return Some(Retry { max: self.retry_count(node, "retry")?, ..Retry::default() });
        }
        self.check_mapping(node, "retry", &["max", "when", "exit_codes"])?;
        let max = match node.get("max") {
            Some(max) => self.retry_count(max, "retry:max")?,
            None => 0,
        };
        let when = match node.get("when") {
            Some(when) => Some(self.retry_reasons(when)?),
            None => None,
        };
        let exit_codes = match node.get("exit_codes") {
            Some(codes) => Some(self.integers(codes, "retry:exit_codes")?),
            None => None,
        };
        Some(Retry { max, when, exit_codes })
    }

    fn retry_count(&mut self, node: &Node, keyword: &str) -> Option<u32> {
        match node.integer().filter(|max| (0..=MAX_RETRIES).contains(max)) {
            Some(max) => Some(max as u32),
            None => {
                let value = node.printed().unwrap_or_else(|| node.kind().into());
                let message = format!("`{keyword}` must be a number from 0 to {MAX_RETRIES}, not `{value}`");
                self.error(Class::RetryRange, node.at, message)
            }
        }
    }

    fn retry_reasons(&mut self, node: &Node) -> Option<Vec<Arc<str>>> {
        let reasons = self.text_or_flat_texts(node, "retry:when")?;
        if let Some(reason) = reasons.iter().find(|reason| !RETRY_REASONS.contains(&&***reason)) {
            let hint = did_you_mean(reason, &RETRY_REASONS);
            return self.error(
                Class::BadValue,
                node.at,
                format!("`retry:when: {reason}` is not a failure reason{hint}"),
            );
        }
        Some(reasons)
    }
}
