//! References to runner tokens in AWS (`aws-ssm:NAME` or `aws-secretsmanager:ID`), so that neither the image nor the
//! user data contains the token.

use std::fmt;

/// Where a token is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenReference {
    /// A parameter of AWS Systems Manager, by name or ARN.
    Parameter(String),
    /// A secret of AWS Secrets Manager.
    Secret {
        /// Name or ARN.
        id: String,
        /// The key, if the secret is a JSON object.
        key: Option<String>,
    },
}

impl TokenReference {
    /// Parses a value of `token`; `None` if it is a token itself. Fails if the name or the key is missing.
    pub fn read(text: &str) -> Result<Option<Self>, String> {
        let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
        // The text may contain a token that was pasted behind the kind, so the message does not show it.
        let missing = |example: &str| {
            format!(
                "the token's reference to AWS lacks the name of a parameter or secret; write for example \"{example}\""
            )
        };
        match kind {
            "aws-ssm" if rest.is_empty() => Err(missing("aws-ssm:/ci/runner-token")),
            "aws-ssm" => Ok(Some(Self::Parameter(rest.to_owned()))),
            "aws-secretsmanager" => {
                let (id, key) = rest.split_once('#').map_or((rest, None), |(id, key)| (id, Some(key.to_owned())));
                match id.is_empty() || key.as_deref() == Some("") {
                    true => Err(missing("aws-secretsmanager:ci/runner#token")),
                    false => Ok(Some(Self::Secret { id: id.to_owned(), key })),
                }
            }
            _ => Ok(None),
        }
    }
}

impl fmt::Display for TokenReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Parameter(name) => write!(f, "aws-ssm:{name}"),
            Self::Secret { id, key: None } => write!(f, "aws-secretsmanager:{id}"),
            Self::Secret { id, key: Some(key) } => write!(f, "aws-secretsmanager:{id}#{key}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distinguishes_references_from_tokens() {
        for text in ["aws-ssm:/ci/token", "aws-secretsmanager:arn:aws:secretsmanager:r:1:secret:x#token"] {
            let reference = TokenReference::read(text).unwrap().unwrap();
            assert_eq!(reference.to_string(), text);
        }
        let secret = TokenReference::read("aws-secretsmanager:a#b").unwrap();
        assert_eq!(secret, Some(TokenReference::Secret { id: "a".to_owned(), key: Some("b".to_owned()) }));
        for token in ["glrt-abc", "", "GR1348941:x", "aws"] {
            assert_eq!(TokenReference::read(token), Ok(None), "{token}");
        }
        for text in ["aws-ssm:", "aws-secretsmanager:", "aws-secretsmanager:#k", "aws-secretsmanager:a#", "aws-ssm"] {
            assert!(TokenReference::read(text).is_err(), "{text}");
        }
    }
}
