//! The requests that manage runners: register, create, verify, unregister, reset a token.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{ApiError, GitLab, decode, error_text};
use crate::http::{Method, Response};
use crate::token::Token;

/// A runner in a response of the server.
#[derive(Clone, Debug, Deserialize)]
pub struct Registration {
    /// The runner's id; old servers do not send it.
    #[serde(default)]
    pub id: i64,
    /// The runner's token; the response to `verify` need not contain it.
    #[serde(default)]
    pub token: Option<Token>,
    /// When the token expires.
    #[serde(default)]
    pub token_expires_at: Option<String>,
    /// An old server confirmed the token without a description of the runner.
    #[serde(skip)]
    pub is_of_old_server: bool,
}

/// Whether GitLab accepts a token.
#[derive(Clone, Debug)]
pub enum TokenStatus {
    /// GitLab accepts it.
    Valid(Registration),
    /// GitLab does not know the token (403).
    Invalid,
}

/// The attributes of a runner to be created.
#[derive(Clone, Debug, Default, Serialize)]
pub struct NewRunner {
    /// `instance_type`, `group_type` or `project_type`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runner_type: Option<String>,
    /// The id of the group, for `group_type`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group_id: Option<i64>,
    /// The id of the project, for `project_type`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub project_id: Option<i64>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub maintenance_note: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub tag_list: String,
    /// Run jobs without tags.
    pub run_untagged: bool,
    /// The runner can only be used by the projects to which it is assigned.
    pub locked: bool,
    /// Do not assign jobs yet.
    pub paused: bool,
    /// `not_protected` or `ref_protected`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub access_level: String,
    /// The maximum job timeout in seconds; 0 for no limit.
    #[serde(skip_serializing_if = "is_zero")]
    pub maximum_timeout: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl GitLab {
    /// Registers a runner with a legacy registration token (`POST runners`).
    pub fn register(&self, registration: &Token, runner: &NewRunner) -> Result<Registration, ApiError> {
        let mut body = serde_json::to_value(runner).map_err(|error| ApiError::Unreachable(error.to_string()))?;
        body["token"] = json!(registration.reveal());
        body["info"] = json!(self.info);
        let secret = Some(("RUNNER-TOKEN", registration.reveal()));
        decode_registration(&self.send_json(Method::Post, "runners", secret, &body)?)
    }

    /// Creates a runner with a user's access token (`POST user/runners`, scope `create_runner`).
    pub fn create_runner(&self, access: &Token, runner: &NewRunner) -> Result<Registration, ApiError> {
        let secret = Some(("PRIVATE-TOKEN", access.reveal()));
        decode_registration(&self.send_json(Method::Post, "user/runners", secret, runner)?)
    }

    /// Verifies a runner's token (`POST runners/verify`); also creates the runner manager of this machine.
    pub fn verify(&self, token: &Token, system_id: &str) -> Result<TokenStatus, ApiError> {
        let body = json!({"token": token.reveal(), "system_id": system_id, "info": self.info});
        let response = self.send_json(Method::Post, "runners/verify", Some(("RUNNER-TOKEN", token.reveal())), &body)?;
        match response.status {
            // Old servers return the bare text `200`.
            200 if response.body.trim_ascii() == b"200" => {
                let (token, token_expires_at) = (None, None);
                Ok(TokenStatus::Valid(Registration { id: 0, token, token_expires_at, is_of_old_server: true }))
            }
            200 => match decode::<Registration>(&response)? {
                runner if runner.id > 0 || runner.token.is_some() => Ok(TokenStatus::Valid(runner)),
                _ => Err(ApiError::Status(
                    200,
                    "the response names no runner; check that `url` is the address of GitLab".to_owned(),
                )),
            },
            403 => Ok(TokenStatus::Invalid),
            status => Err(ApiError::Status(status, error_text(&response))),
        }
    }

    /// Unregisters this machine's runner manager (`DELETE runners/managers`); the runner remains.
    pub fn unregister_manager(&self, token: &Token, system_id: &str) -> Result<(), ApiError> {
        self.delete_manager(token, system_id, None)
    }

    /// As [`GitLab::unregister_manager`], with one request that ends within `timeout`.
    pub fn unregister_manager_once(&self, token: &Token, system_id: &str, timeout: Duration) -> Result<(), ApiError> {
        self.delete_manager(token, system_id, Some(timeout))
    }

    fn delete_manager(&self, token: &Token, system_id: &str, timeout: Option<Duration>) -> Result<(), ApiError> {
        let body = json!({"token": token.reveal(), "system_id": system_id});
        self.delete("runners/managers", token, &body, timeout)
    }

    /// Removes a runner with all its managers (`DELETE runners`).
    pub fn unregister(&self, token: &Token) -> Result<(), ApiError> {
        self.delete("runners", token, &json!({"token": token.reveal()}), None)
    }

    fn delete(
        &self,
        path: &str,
        token: &Token,
        body: &serde_json::Value,
        timeout: Option<Duration>,
    ) -> Result<(), ApiError> {
        let headers =
            vec![("Content-Type", "application/json".to_owned()), ("RUNNER-TOKEN", token.reveal().to_owned())];
        let response = self.send_within(timeout, Method::Delete, path, headers, body.to_string().as_bytes())?;
        match response.status {
            204 => Ok(()),
            status => Err(api_error(status, &response)),
        }
    }

    /// Replaces a runner's token; the old one is invalid at once (`POST runners/reset_authentication_token`).
    pub fn reset_token(&self, token: &Token) -> Result<Registration, ApiError> {
        let body = json!({"token": token.reveal()});
        decode_registration(&self.send_json(Method::Post, "runners/reset_authentication_token", None, &body)?)
    }

    /// Replaces the token of the runner with this id, with a user's access token.
    pub fn reset_token_of(&self, id: i64, access: &Token) -> Result<Registration, ApiError> {
        let path = format!("runners/{id}/reset_authentication_token");
        let secret = Some(("PRIVATE-TOKEN", access.reveal()));
        decode_registration(&self.send_json(Method::Post, &path, secret, &serde_json::Value::Null)?)
    }
}

fn decode_registration(response: &Response) -> Result<Registration, ApiError> {
    match response.status {
        201 => decode(response),
        status => Err(api_error(status, response)),
    }
}

fn api_error(status: u16, response: &Response) -> ApiError {
    match status {
        401 | 403 => ApiError::Refused(error_text(response)),
        _ => ApiError::Status(status, error_text(response)),
    }
}
