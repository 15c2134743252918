//! Computes predefined variables from facts about the commit, its repository and the pipeline.

use std::sync::Arc;

use super::hash::Index;
use super::plan::ParallelIndex;
use super::project_address::ProjectAddress;
use super::request::{ConfigurationStart, DEFAULT_FILE, MergeRequest, PlanRequest};
use super::slug::slug;

/// The value of `CI_SERVER_VERSION` unless the caller sets one.
const SERVER_VERSION: &str = "19.0.0";

/// The commit id that GitLab uses for "no commit".
const NO_COMMIT: &str = "0000000000000000000000000000000000000000";

/// The predefined variables that all jobs share.
pub fn pipeline_variables(request: &PlanRequest<'_>, project: &ProjectAddress) -> Index<Arc<str>, Arc<str>> {
    let mut variables = Variables(Index::with_capacity_and_hasher(128, Default::default()));
    let given = |key: &str| request.predefined.iter().rev().find(|(name, _)| name == key).map(|(_, value)| value);
    variables.server(project, given("CI_SERVER_VERSION").map_or(SERVER_VERSION, |version| version));
    variables.project(request, project);
    variables.commit(request);
    variables.pipeline(request, project);
    if let Some(merge_request) = &request.source.merge_request {
        variables.merge_request(request, merge_request, project);
    }
    for (key, value) in &request.predefined {
        variables.set(key, value.as_str());
    }
    variables.0
}

struct Variables(Index<Arc<str>, Arc<str>>);

impl Variables {
    fn set(&mut self, key: &str, value: impl Into<Arc<str>>) {
        self.0.insert(key.into(), value.into());
    }

    fn server(&mut self, project: &ProjectAddress, version: &str) {
        self.set("CI", "true");
        self.set("GITLAB_CI", "true");
        self.set("CI_SERVER", "yes");
        let url = project.server_url();
        self.set("CI_SERVER_URL", url.as_str());
        self.set("CI_SERVER_HOST", project.host.as_str());
        self.set("CI_SERVER_PORT", project.port.to_string());
        self.set("CI_SERVER_PROTOCOL", project.protocol);
        self.set("CI_SERVER_FQDN", project.fqdn());
        self.set("CI_SERVER_SHELL_SSH_HOST", project.host.as_str());
        self.set("CI_SERVER_SHELL_SSH_PORT", project.ssh_port.to_string());
        self.set("CI_SERVER_NAME", "GitLab");
        self.set("CI_SERVER_VERSION", version);
        let mut numbers = version.split('.');
        for part in ["MAJOR", "MINOR", "PATCH"] {
            let digits: String = numbers.next().unwrap_or("0").chars().take_while(char::is_ascii_digit).collect();
            self.set(&format!("CI_SERVER_VERSION_{part}"), digits);
        }
        self.set("CI_SERVER_REVISION", "");
        self.set("GITLAB_FEATURES", "");
        self.set("CI_API_V4_URL", format!("{url}/api/v4"));
        self.set("CI_API_GRAPHQL_URL", format!("{url}/api/graphql"));
        self.set("CI_TEMPLATE_REGISTRY_HOST", "registry.gitlab.com");
    }

    fn project(&mut self, request: &PlanRequest<'_>, project: &ProjectAddress) {
        let path = project.path.as_str();
        let (namespace, name) = path.rsplit_once('/').unwrap_or(("", path));
        let root = path.split_once('/').map_or("", |(root, _)| root);
        let url = format!("{}/{path}", project.server_url());
        self.set("CI_PROJECT_ID", "1");
        self.set("CI_PROJECT_NAME", name);
        self.set("CI_PROJECT_TITLE", name);
        self.set("CI_PROJECT_DESCRIPTION", "");
        self.set("CI_PROJECT_PATH", path);
        self.set("CI_PROJECT_PATH_SLUG", slug(path));
        self.set("CI_PROJECT_NAMESPACE", namespace);
        self.set("CI_PROJECT_NAMESPACE_ID", "1");
        self.set("CI_PROJECT_NAMESPACE_SLUG", slug(namespace));
        self.set("CI_PROJECT_ROOT_NAMESPACE", root);
        self.set("CI_REPOSITORY_URL", format!("{url}.git"));
        self.set("CI_PROJECT_URL", url);
        self.set("CI_PROJECT_VISIBILITY", "private");
        self.set("CI_PROJECT_REPOSITORY_LANGUAGES", "");
        self.set("CI_PROJECT_TOPICS", "");
        self.set("CI_PROJECT_CLASSIFICATION_LABEL", "");
        let default_branch = request.facts.default_branch.as_str();
        self.set("CI_DEFAULT_BRANCH", default_branch);
        self.set("CI_DEFAULT_BRANCH_SLUG", slug(default_branch));
        let config = match &request.start {
            ConfigurationStart::File(path) => path.as_str(),
            ConfigurationStart::Includes { .. } => DEFAULT_FILE,
        };
        self.set("CI_CONFIG_PATH", config);
        let registry = format!("registry.{}", project.host);
        self.set("CI_REGISTRY_IMAGE", format!("{registry}/{}", path.to_lowercase()));
        self.set("CI_REGISTRY", registry);
        self.set("CI_REGISTRY_USER", "gitlab-ci-token");
        let pages = format!("pages.{}", project.host);
        self.set("CI_PAGES_HOSTNAME", format!("{}.{pages}", slug(root)));
        self.set("CI_PAGES_URL", format!("{}://{}.{pages}/{name}", project.protocol, slug(root)));
        self.set("CI_PAGES_DOMAIN", pages);
        self.dependency_proxy(project);
    }

    fn dependency_proxy(&mut self, project: &ProjectAddress) {
        // Docker allows no capital letters in the names of images.
        let path = project.path.to_lowercase();
        let namespace = path.rsplit_once('/').map_or("", |(namespace, _)| namespace);
        let root = path.split_once('/').map_or("", |(root, _)| root);
        let proxy = format!("{}:{}", project.host, project.port);
        // The directory of a checkout without a remote is in no group.
        let prefix = |group: &str| match group {
            "" => format!("{proxy}/dependency_proxy/containers"),
            group => format!("{proxy}/{group}/dependency_proxy/containers"),
        };
        self.set("CI_DEPENDENCY_PROXY_GROUP_IMAGE_PREFIX", prefix(root));
        self.set("CI_DEPENDENCY_PROXY_DIRECT_GROUP_IMAGE_PREFIX", prefix(namespace));
        self.set("CI_DEPENDENCY_PROXY_SERVER", proxy);
        self.set("CI_DEPENDENCY_PROXY_USER", "gitlab-ci-token");
    }

    fn commit(&mut self, request: &PlanRequest<'_>) {
        let facts = &request.facts;
        let message = facts.message.as_str();
        let (title, rest) = message.split_once('\n').unwrap_or((message, ""));
        self.set("CI_COMMIT_SHA", facts.sha.as_str());
        self.set("CI_COMMIT_SHORT_SHA", facts.sha.get(..8).unwrap_or(&facts.sha));
        self.set("CI_COMMIT_TITLE", title);
        self.set("CI_COMMIT_MESSAGE", message);
        let description = if title.chars().count() < 100 { rest.strip_suffix('\n').unwrap_or(rest) } else { message };
        self.set("CI_COMMIT_DESCRIPTION", description);
        self.set("CI_COMMIT_AUTHOR", facts.author.as_str());
        self.set("CI_COMMIT_TIMESTAMP", facts.timestamp.as_str());
        let merge_request = request.source.merge_request.as_ref();
        let branch = facts.branch.as_deref().unwrap_or_default();
        let reference = match (merge_request, &facts.tag) {
            (Some(merge_request), _) => merge_request.source.as_str(),
            (None, Some(tag)) => tag,
            (None, None) => branch,
        };
        self.set("CI_COMMIT_REF_NAME", reference);
        self.set("CI_COMMIT_REF_SLUG", slug(reference));
        match &facts.tag {
            Some(tag) if merge_request.is_none() => {
                self.set("CI_COMMIT_TAG", tag.as_str());
                self.set("CI_COMMIT_TAG_MESSAGE", facts.tag_message.as_str());
            }
            _ if merge_request.is_none() && !branch.is_empty() => self.set("CI_COMMIT_BRANCH", branch),
            _ => {}
        }
        // Only a push has a commit before it; a child pipeline gets that of its parent.
        let is_push = ["push", "parent_pipeline"].contains(&request.source.name.as_str());
        let before = facts.before.as_deref().filter(|_| merge_request.is_none() && is_push);
        self.set("CI_COMMIT_BEFORE_SHA", before.unwrap_or(NO_COMMIT));
        self.set("CI_COMMIT_REF_PROTECTED", facts.protected.to_string());
    }

    fn pipeline(&mut self, request: &PlanRequest<'_>, project: &ProjectAddress) {
        let facts = &request.facts;
        let id = facts.pipeline_id.to_string();
        let url = format!("{}/{}/-/pipelines/{id}", project.server_url(), project.path);
        self.set("CI_PIPELINE_SOURCE", request.source.name.as_str());
        self.set("CI_PIPELINE_IID", id.as_str());
        self.set("CI_PIPELINE_ID", id);
        self.set("CI_PIPELINE_URL", url);
        self.set("CI_PIPELINE_CREATED_AT", facts.created_at.as_str());
        if request.source.name == "trigger" {
            self.set("CI_PIPELINE_TRIGGERED", "true");
        }
        self.set("GITLAB_USER_ID", "1");
        self.set("GITLAB_USER_NAME", facts.user_name.as_str());
        self.set("GITLAB_USER_EMAIL", facts.user_email.as_str());
        self.set("GITLAB_USER_LOGIN", facts.user_email.split('@').next().unwrap_or_default());
    }

    fn merge_request(&mut self, request: &PlanRequest<'_>, merge_request: &MergeRequest, project: &ProjectAddress) {
        let mut set = |key: &str, value: &str| self.set(&format!("CI_MERGE_REQUEST_{key}"), value);
        let url = format!("{}/{}", project.server_url(), project.path);
        let iid = merge_request.iid.to_string();
        set("ID", &iid);
        set("IID", &iid);
        set("REF_PATH", &format!("refs/merge-requests/{iid}/head"));
        set("EVENT_TYPE", "detached");
        set("TITLE", &merge_request.title);
        set("DESCRIPTION", "");
        set("DESCRIPTION_IS_TRUNCATED", "false");
        if !merge_request.labels.is_empty() {
            set("LABELS", &merge_request.labels.join(","));
        }
        set("DRAFT", if merge_request.title.starts_with("Draft:") { "true" } else { "false" });
        set("SQUASH_ON_MERGE", "false");
        set("DIFF_ID", "1");
        set("DIFF_BASE_SHA", &merge_request.diff_base_sha);
        set("PROJECT_ID", "1");
        set("PROJECT_PATH", &project.path);
        set("PROJECT_URL", &url);
        set("SOURCE_BRANCH_NAME", &merge_request.source);
        // The commits of both branches are set in merged results pipelines only.
        set("SOURCE_BRANCH_SHA", "");
        set("SOURCE_BRANCH_PROTECTED", "false");
        set("SOURCE_PROJECT_ID", "1");
        set("SOURCE_PROJECT_PATH", &project.path);
        set("SOURCE_PROJECT_URL", &url);
        set("TARGET_BRANCH_NAME", &merge_request.target);
        set("TARGET_BRANCH_SHA", "");
        let protected = if merge_request.target == request.facts.default_branch { "true" } else { "false" };
        set("TARGET_BRANCH_PROTECTED", protected);
        self.set("CI_OPEN_MERGE_REQUESTS", format!("{}!{iid}", project.path));
    }
}

/// `CI_NODE_INDEX` and `CI_NODE_TOTAL`.
pub fn node_variables(instance: Option<ParallelIndex>) -> impl Iterator<Item = (&'static str, Arc<str>)> {
    let index = instance.map(|instance| ("CI_NODE_INDEX", instance.index.to_string().into()));
    let total = instance.map_or(1, |instance| instance.total).to_string();
    index.into_iter().chain([("CI_NODE_TOTAL", total.into())])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_of_the_dependency_proxy_contain_no_empty_group() {
        for (remote, expected) in [
            (Some("https://a.test/Team/sub/app"), ["a.test:443/team/", "a.test:443/team/sub/"]),
            (None, ["localhost:443/", "localhost:443/"]),
        ] {
            let mut variables = Variables(Index::default());
            variables.dependency_proxy(&ProjectAddress::new(remote, "app"));
            let keys = ["CI_DEPENDENCY_PROXY_GROUP_IMAGE_PREFIX", "CI_DEPENDENCY_PROXY_DIRECT_GROUP_IMAGE_PREFIX"];
            for (key, group) in keys.into_iter().zip(expected) {
                let value = variables.0.get(key).map(|value| &**value);
                assert_eq!(value, Some(format!("{group}dependency_proxy/containers").as_str()), "{key}");
            }
        }
    }
}
