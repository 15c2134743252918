//! Proof of a role without a shared secret. The agent signs an STS request (`GetCallerIdentity`), the manager sends
//! that request, and STS responds with the role and the name of the session, which for an instance is its id. A
//! signature is valid for one instance, one boot and a few minutes, and reveals no credentials.

use crate::coordinator::manager::protocol::Introduction;
use crate::instance::aws::caller_identity::{self, Unverified};

/// Checks that the agent has this role on the instance that it names. Errors: why it does not.
pub fn check(role: &str, introduction: &Introduction) -> Result<(), Unverified> {
    let Some(proof) = &introduction.proof else {
        return Err(Unverified::Rejected(
            "this pool requires a proof of its `agent_role`; write token = \"aws-sts\" in the agent's configuration"
                .to_owned(),
        ));
    };
    let arn = caller_identity::verify(proof, &introduction.binding())?;
    match is_session_of(&arn, role, &introduction.instance) {
        true => Ok(()),
        false => {
            let why =
                format!("the request was signed by {arn}; expected role {role} on instance {}", introduction.instance);
            Err(Unverified::Rejected(why))
        }
    }
}

/// Whether an ARN is that of a role's session on an instance.
fn is_session_of(arn: &str, role: &str, instance: &str) -> bool {
    let parts = |arn: &str| -> Option<(String, String, String)> {
        let mut parts = arn.splitn(6, ':');
        let (_, partition, _, _) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        Some((partition.to_owned(), parts.next()?.to_owned(), parts.next()?.to_owned()))
    };
    let (Some(session), Some(role)) = (parts(arn), parts(role)) else { return false };
    let name = role.2.strip_prefix("role/").and_then(|path| path.rsplit('/').next());
    let expected = name.map(|name| format!("assumed-role/{name}/{instance}"));
    (session.0, session.1) == (role.0, role.1) && expected.is_some_and(|expected| session.2 == expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_has_the_accounts_role_and_the_instances_name() {
        let arn = "arn:aws:sts::123456789012:assumed-role/agents/i-0abc";
        let role = "arn:aws:iam::123456789012:role/ci/agents";
        assert!(is_session_of(arn, role, "i-0abc"));
        for (role, instance) in [
            (role, "i-0abd"),
            ("arn:aws:iam::123456789013:role/agents", "i-0abc"),
            ("arn:aws-cn:iam::123456789012:role/agents", "i-0abc"),
            ("arn:aws:iam::123456789012:role/other", "i-0abc"),
            ("arn:aws:iam::123456789012:user/agents", "i-0abc"),
            ("nonsense", "i-0abc"),
        ] {
            assert!(!is_session_of(arn, role, instance), "{role} {instance}");
        }
    }
}
