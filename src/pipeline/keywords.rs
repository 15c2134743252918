//! Which keywords of the CI language a local run acts on, and what it says of the others.

/// What becomes of a keyword.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// It is acted on.
    Run,
    /// It has no effect in a local run; the text says why.
    Noted(&'static str),
    /// Without it the job would be another one, so the file is refused; the text says why.
    Refused(&'static str),
    /// GitLab has no such keyword.
    Unknown,
}

const SHELL: &str = "jobs run in the shell of this machine";
const NO_STORE: &str = "a local run does not hand files from job to job yet";
const SERVER: &str = "only a GitLab server acts on it";
const ORDER: &str = "jobs run in the order of their stages";
const RULES: &str = "a local run does not evaluate rules yet, and must not run a job that they may exclude";
const MERGED: &str = "files and jobs are not merged yet by a local run; write the job out";

/// Support of a keyword at the top level of the file; `None` when the key is the name of a job.
pub fn global(keyword: &str) -> Option<Support> {
    Some(match keyword {
        "stages" | "default" | "variables" | "before_script" | "after_script" => Support::Run,
        "image" => Support::Run,
        "services" => Support::Noted(SHELL),
        "cache" => Support::Noted(NO_STORE),
        "workflow" => Support::Refused(RULES),
        "include" | "spec" => Support::Refused(MERGED),
        _ => return None,
    })
}

/// Support of a keyword below `default`.
pub fn default(keyword: &str) -> Support {
    match keyword {
        "before_script" | "after_script" | "image" | "timeout" => Support::Run,
        "artifacts" | "cache" | "hooks" | "id_tokens" | "identity" | "interruptible" | "retry" | "services"
        | "tags" => job(keyword),
        _ => Support::Unknown,
    }
}

/// Support of a keyword of a job.
pub fn job(keyword: &str) -> Support {
    match keyword {
        "script" | "before_script" | "after_script" | "stage" | "variables" | "allow_failure" | "timeout" | "when"
        | "image" => Support::Run,
        "services" | "tags" => Support::Noted(SHELL),
        "artifacts" | "cache" | "dependencies" => Support::Noted(NO_STORE),
        "needs" => Support::Noted(ORDER),
        "rules" | "only" | "except" => Support::Refused(RULES),
        "start_in" => Support::Noted("a local run does not wait"),
        "retry" => Support::Noted("a local run tries a job once"),
        "inherit" => Support::Noted("`default` and global variables always apply in a local run"),
        "hooks" => Support::Noted("a local run fetches no sources"),
        "coverage"
        | "environment"
        | "id_tokens"
        | "identity"
        | "interruptible"
        | "manual_confirmation"
        | "pages"
        | "publish"
        | "release"
        | "resource_group"
        | "secrets"
        | "dast_configuration" => Support::Noted(SERVER),
        "extends" => Support::Refused(MERGED),
        "parallel" => Support::Refused("a local run does not multiply jobs yet"),
        "trigger" => Support::Refused("a local run starts no other pipelines"),
        "run" => Support::Refused("steps are not run; write a `script`"),
        _ => Support::Unknown,
    }
}

/// All keywords a job may have, for the hint at a misspelt one.
pub const OF_JOB: &[&str] = &[
    "after_script",
    "allow_failure",
    "artifacts",
    "before_script",
    "cache",
    "coverage",
    "dependencies",
    "environment",
    "except",
    "extends",
    "hooks",
    "id_tokens",
    "image",
    "inherit",
    "interruptible",
    "needs",
    "only",
    "parallel",
    "release",
    "resource_group",
    "retry",
    "rules",
    "script",
    "secrets",
    "services",
    "stage",
    "start_in",
    "tags",
    "timeout",
    "trigger",
    "variables",
    "when",
];
