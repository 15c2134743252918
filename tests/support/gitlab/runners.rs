//! Registration of runners, and of the runner managers that poll for them.

use serde_json::{Value, json};

use super::super::http::{Answer, Request};
use super::{GitLab, RUNNER_TOKEN, TOKEN_AFTER_RESET};

impl GitLab {
    pub(super) fn verify(&self, request: &Request) -> Answer {
        let body = request.json();
        if !self.is_valid_token(&body["token"]) {
            return Answer::json(403, &json!({"message": "403 Forbidden"}));
        }
        if body["info"]["features"]["cancel_gracefully"] != true {
            self.violation("verify: `info` must announce the features".to_owned());
        }
        let system_id = body["system_id"].as_str().unwrap_or_default().to_owned();
        self.lock().managers.push(system_id);
        Answer::json(200, &json!({"id": 7, "token": body["token"], "token_expires_at": null}))
    }

    pub(super) fn is_valid_token(&self, token: &Value) -> bool {
        let state = self.lock();
        !state.is_runner_deleted && *token == state.new_token.as_deref().unwrap_or(RUNNER_TOKEN)
    }

    pub(super) fn reset_token(&self, request: &Request) -> Answer {
        if !self.is_valid_token(&request.json()["token"]) {
            return Answer::json(403, &json!({"message": "403 Forbidden"}));
        }
        self.lock().new_token = Some(TOKEN_AFTER_RESET.to_owned());
        Answer::json(201, &json!({"token": TOKEN_AFTER_RESET, "token_expires_at": "2040-01-02T03:04:05Z"}))
    }

    pub(super) fn create_runner(&self, request: &Request) -> Answer {
        self.lock().created.push(request.json());
        Answer::json(201, &json!({"id": 7, "token": RUNNER_TOKEN, "token_expires_at": null}))
    }

    pub(super) fn remove_manager(&self, request: &Request) -> Answer {
        let body = request.json();
        if !self.is_valid_token(&body["token"]) {
            return Answer::json(403, &json!({"message": "403 Forbidden"}));
        }
        let mut state = self.lock();
        let known = state.managers.len();
        state.managers.retain(|id| body["system_id"] != id.as_str());
        Answer::new(if state.managers.len() < known { 204 } else { 404 })
    }
}
