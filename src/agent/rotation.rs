//! Tokens that die are replaced in time: after three quarters of their life, one at a time, and written to the
//! configuration at once, since the old token is dead from then on.

use std::time::Duration;

use super::Agent;
use crate::config::Runner;
use crate::config::edit::Editor;
use crate::coordinator::gitlab::GitLab;

/// When a replacement failed, it is tried again after this.
const AGAIN_AFTER: Duration = Duration::from_secs(600);

impl Agent {
    /// Replaces the tokens that are due; says how long until the next one is.
    pub(super) fn rotate_tokens(&self) -> Option<Duration> {
        let mut next = None;
        for (runner, gitlab) in &self.servers {
            let Some(left) = until_due(runner) else { continue };
            let left = if left.is_zero() { self.rotate(runner, gitlab) } else { left };
            next = Some(next.map_or(left, |next: Duration| next.min(left)));
        }
        next
    }

    fn rotate(&self, runner: &Runner, gitlab: &GitLab) -> Duration {
        if runner.feature_flags.get("FF_DISABLE_AUTOMATIC_TOKEN_ROTATION") == Some(&true) {
            log::warn!(
                "a token expires soon and is not replaced (FF_DISABLE_AUTOMATIC_TOKEN_ROTATION) runner={}",
                runner.name
            );
            return AGAIN_AFTER;
        }
        match replace(self, runner, gitlab) {
            Ok(()) => log::info!("the token was replaced runner={}", runner.name),
            Err(why) => log::error!("the token could not be replaced runner={} error={why}", runner.name),
        }
        // A written configuration is noticed, and brings the new token with it.
        AGAIN_AFTER
    }
}

fn replace(agent: &Agent, runner: &Runner, gitlab: &GitLab) -> Result<(), String> {
    // The file first: a token that cannot be kept must not be asked for.
    let mut editor = Editor::open(&agent.options.config)?;
    if !editor.has(&runner.url, &runner.token) {
        return Err(format!("the runner is not in {} any more", agent.options.config.display()));
    }
    editor.save().map_err(|error| format!("{}: {error}", agent.options.config.display()))?;
    let registration = gitlab.reset_token(&runner.token).map_err(|error| error.to_string())?;
    let token = registration.token.ok_or("the server sent no token")?;
    let now = jiff::Timestamp::now().to_string();
    editor.replace_token(&runner.token, &token, &now, registration.token_expires_at.as_deref());
    editor.save().map_err(|error| format!("{}: {error}", agent.options.config.display()))
}

/// How long until a token is to be replaced; `None` for one that lives for ever.
fn until_due(runner: &Runner) -> Option<Duration> {
    let (obtained, expires) = runner.token_life.as_ref()?;
    let (obtained, expires): (jiff::Timestamp, jiff::Timestamp) = (obtained.parse().ok()?, expires.parse().ok()?);
    let life = expires.as_second() - obtained.as_second();
    let due = obtained.as_second() + life / 4 * 3;
    let left = due - jiff::Timestamp::now().as_second();
    Some(Duration::from_secs(u64::try_from(left).unwrap_or(0)))
}
