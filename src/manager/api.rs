//! The requests of agents to the manager over HTTP, and the authentication of agents.

use std::sync::{Arc, PoisonError, RwLock};

use serde::de::DeserializeOwned;

use super::broker::{Admission, Broker, RegistrationError};
use super::server::request::{ServerRequest, ServerResponse};
use super::server::{Exchange, Handler, Ticket};
use crate::coordinator::manager::protocol::{
    Acceptance, Heartbeat, Introduction, MANAGER_HEADER, PROTOCOL, VerifyBody, is_agent_token,
};
use crate::decode;
use crate::digest::sha256;
use crate::instance::aws::caller_identity::Unverified;
use crate::token::Token;
use crate::version::VERSION;

/// The prefix of all paths.
const BASE: &str = "/api/v4/";

/// The requests of the agents of all pools.
pub struct Api {
    /// `None` until the pools have started; until then an unknown token is not rejected.
    brokers: RwLock<Option<Vec<Arc<Broker>>>>,
    /// The SHA-256 of the fleet token; `None` if there is none.
    fleet_token: RwLock<Option<String>>,
}

impl Api {
    /// An API without pools. `token` is the fleet token; empty for none.
    pub fn new(token: &Token) -> Arc<Self> {
        let api = Self { brokers: RwLock::default(), fleet_token: RwLock::default() };
        api.set_fleet_token(token);
        Arc::new(api)
    }

    /// Replaces the fleet token (reload); registered agents keep their own tokens.
    pub fn set_fleet_token(&self, token: &Token) {
        let hash = (!token.is_empty()).then(|| sha256(token.reveal().as_bytes()));
        *self.fleet_token.write().unwrap_or_else(PoisonError::into_inner) = hash;
    }

    /// Replaces the pools.
    pub fn set_brokers(&self, brokers: Vec<Arc<Broker>>) {
        *self.brokers.write().unwrap_or_else(PoisonError::into_inner) = Some(brokers);
    }

    fn brokers(&self) -> Vec<Arc<Broker>> {
        self.brokers.read().unwrap_or_else(PoisonError::into_inner).clone().unwrap_or_default()
    }

    /// The agent that sent a request. The error is the response to a request of an unknown agent.
    fn agent(&self, request: &ServerRequest) -> Result<(Arc<Broker>, String), ServerResponse> {
        let token = request.header("RUNNER-TOKEN").unwrap_or_default();
        let hash = sha256(token.as_bytes());
        let found = self.brokers().into_iter().find_map(|broker| {
            let instance = broker.agent_of(&hash)?;
            Some((broker, instance))
        });
        found.ok_or_else(|| ServerResponse::message(401, "this manager does not know the agent; register again"))
    }

    fn is_fleet_token(&self, token: Option<&Token>) -> bool {
        let fleet = self.fleet_token.read().unwrap_or_else(PoisonError::into_inner).clone();
        let hash = token.map(|token| sha256(token.reveal().as_bytes()));
        fleet.is_some() && hash == fleet
    }

    fn verify(&self, request: &ServerRequest) -> ServerResponse {
        let body: VerifyBody = match body(request) {
            Ok(body) => body,
            Err(response) => return response,
        };
        let Some(introduction) = body.mayfly else {
            // `mayfly check` and `mayfly verify` only check whether the token is valid.
            return match self.is_fleet_token(body.token.as_ref()) {
                true => ServerResponse::json(200, &serde_json::json!({ "id": 0 })),
                false => ServerResponse::message(
                    403,
                    "the token is not the fleet token of this manager; write `agent_token` of the manager as `token`",
                ),
            };
        };
        if introduction.protocol != PROTOCOL {
            let why = format!(
                "the agent (version {}) speaks protocol {}, the manager {PROTOCOL}; update the older of both",
                introduction.version, introduction.protocol
            );
            log::warn!("registration refused instance={} error={why}", introduction.instance);
            return ServerResponse::message(426, &why);
        }
        if !is_name(&introduction.instance) || !is_name(&introduction.boot) {
            return ServerResponse::message(400, "instance and boot must have 1 to 128 visible characters");
        }
        if introduction.agent_token.as_ref().is_some_and(|token| !is_agent_token(token)) {
            return ServerResponse::message(400, "agent_token must be `mfa-` and 48 hexadecimal digits");
        }
        match self.admit(&introduction, body.token.as_ref()) {
            Ok(broker) => register(&broker, &introduction),
            Err(response) => response,
        }
    }

    /// The pool that the instance belongs to. The error is the response if there is none.
    fn admit(&self, introduction: &Introduction, token: Option<&Token>) -> Result<Arc<Broker>, ServerResponse> {
        let has_token = self.is_fleet_token(token);
        let refused = |why: &str| {
            log::warn!("registration refused instance={} error={why}", introduction.instance);
            ServerResponse::message(403, why)
        };
        if !has_token && introduction.proof.is_none() {
            return Err(refused(
                "the token is not the fleet token of this manager; write `agent_token` of the manager as `token`",
            ));
        }
        let brokers = self.brokers();
        let member = brokers.iter().find(|broker| broker.admission(&introduction.instance) == Admission::Member);
        let Some(broker) = member else {
            // The instance may have started after the last read of its group.
            brokers.iter().for_each(|broker| broker.request_group_read());
            return Err(not_member_response(&introduction.instance));
        };
        match broker.settings().sts_proof.as_deref() {
            None if has_token => Ok(Arc::clone(broker)),
            None => Err(refused("the pool has no `agent_role`: an agent proves itself with the fleet's token")),
            Some(role) => match super::proof::check(role, introduction) {
                Ok(()) => Ok(Arc::clone(broker)),
                Err(Unverified::Rejected(why)) => Err(refused(&why)),
                Err(Unverified::Unanswered(why)) => {
                    broker.count_error("sts");
                    log::warn!(
                        "registration deferred: the agent's role cannot be verified instance={} error={why}",
                        introduction.instance
                    );
                    Err(ServerResponse::message(503, &why).with_header("Retry-After", "5"))
                }
            },
        }
    }

    fn route(&self, request: &ServerRequest, exchange: Exchange) {
        let Some(path) = request.path.strip_prefix(BASE) else {
            return respond(
                exchange,
                ServerResponse::message(404, "this is a mayfly manager; agents use it as their `url`"),
            );
        };
        if self.brokers.read().unwrap_or_else(PoisonError::into_inner).is_none() {
            return respond(
                exchange,
                ServerResponse::message(503, "the manager is starting; retry").with_header("Retry-After", "1"),
            );
        }
        if (request.method.as_str(), path) == ("POST", "runners/verify") {
            return respond(exchange, self.verify(request));
        }
        let (broker, instance) = match self.agent(request) {
            Ok(agent) => agent,
            Err(response) => return respond(exchange, response),
        };
        let response = match (request.method.as_str(), path) {
            ("POST", "jobs/request") => return broker.handle_poll(&instance, exchange),
            ("POST", "runners/heartbeat") => match body::<Heartbeat>(request) {
                Ok(heartbeat) => broker.handle_heartbeat(&instance, &heartbeat),
                Err(response) => response,
            },
            ("DELETE", "runners/managers") => {
                broker.unregister(&instance);
                ServerResponse::empty(204)
            }
            ("PUT", path) => match (path.strip_prefix("jobs/"), body::<Acceptance>(request)) {
                (Some(job), Ok(acceptance)) => broker.handle_acceptance(&instance, job, &acceptance),
                (Some(_), Err(response)) => response,
                (None, _) => ServerResponse::message(404, "unknown request"),
            },
            _ => ServerResponse::message(404, "unknown request; agents report jobs to GitLab, not to the manager"),
        };
        respond(exchange, response);
    }
}

impl Handler for Api {
    fn handle(&self, request: ServerRequest, exchange: Exchange) {
        log::debug!("request of an agent method={} path={}", request.method, request.path);
        self.route(&request, exchange);
    }

    fn handle_disconnect(&self, ticket: Ticket) {
        for broker in self.brokers() {
            broker.handle_disconnect(ticket);
        }
    }
}

/// Adds the header by which agents recognise a manager to every response.
fn respond(exchange: Exchange, response: ServerResponse) {
    exchange.respond(&response.with_header(MANAGER_HEADER, VERSION));
}

/// The response to an instance that no group contains at present.
fn not_member_response(instance: &str) -> ServerResponse {
    log::info!("registration deferred: the instance is not in the group yet instance={instance}");
    let why = format!("instance {instance} is not a running member of a pool's group (yet)");
    ServerResponse::message(404, &why).with_header("Retry-After", "3")
}

fn register(broker: &Broker, introduction: &Introduction) -> ServerResponse {
    match broker.register(introduction) {
        Ok(welcome) => ServerResponse::json(200, &serde_json::json!({ "mayfly": welcome })),
        Err(RegistrationError::Taken) => {
            let why = format!(
                "instance {} has an agent already, which registered in the same boot; if its state directory was \
                 removed, reboot or replace the instance",
                introduction.instance
            );
            log::warn!("registration refused pool={} error={why}", broker.name);
            ServerResponse::message(409, &why)
        }
        Err(RegistrationError::NotMember) => not_member_response(&introduction.instance),
        Err(RegistrationError::Store(why)) => {
            log::error!("cannot register an agent pool={} error={why}", broker.name);
            ServerResponse::message(503, "the manager cannot write its state").with_header("Retry-After", "5")
        }
    }
}

/// Whether a name can be written to a log.
fn is_name(text: &str) -> bool {
    (1..=128).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

fn body<T: DeserializeOwned>(request: &ServerRequest) -> Result<T, ServerResponse> {
    // The parser's message may contain a part of a token.
    decode::json(&request.body).map_err(|_| ServerResponse::message(400, "the body of the request cannot be decoded"))
}
