//! `mayfly exec` with files of other projects: over git with the user's credentials, over HTTP, from the cache.

use std::fs;
use std::path::Path;

use base64::Engine as _;
use ring::digest::{SHA256, digest};

use crate::exec::{command, exec, in_checkout};
use crate::support::git::{GitServer, git};
use crate::support::http::{Answer, listen, read_request, write_answer};
use crate::support::mayfly::Home;

/// Lets git log in at the server as a developer would: with a credential helper in the user's configuration.
fn log_in(home: &Home) {
    let helper = "!f() { echo username=gitlab-ci-token; echo password=glcbt-of-the-user; }; f";
    let file = home.path("gitconfig").display().to_string();
    git(&home.path("checkout"), &["config", "--file", &file, "credential.helper", helper]);
}

fn set_origin(home: &Home, url: &str) {
    git(&home.path("checkout"), &["remote", "add", "origin", &format!("{url}/team/app.git")]);
}

/// The jobs of `--list`, or the error.
fn listed(home: &Home, arguments: &[&str]) -> Result<Vec<String>, String> {
    let arguments = [&["--list", "--json"], arguments].concat();
    let config = home.path("gitconfig");
    let output = command(home, &arguments).env("GIT_CONFIG_GLOBAL", config).output().expect("run mayfly");
    if !output.status.success() {
        assert_eq!(output.status.code(), Some(2));
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let plan: serde_json::Value = serde_json::from_slice(&output.stdout).expect("must be JSON");
    let jobs = plan["jobs"].as_array().expect("a list of jobs").iter();
    Ok(jobs.map(|job| job["name"].as_str().expect("a name").to_owned()).collect())
}

const FILE: &str = "
include:
  - {project: group/tools, ref: main, file: [/ci/a.yml]}
  - {component: $CI_SERVER_FQDN/group/parts/build@1, inputs: {what: own}}
j: {script: echo}
";

const COMPONENT: &str = "spec: {component: [version], inputs: {what: {}}}\n---\n'$[[ inputs.what ]]-$[[ component.version ]]': {script: echo}\n";

fn serve(root: &Path) -> GitServer {
    let server = GitServer::start(root);
    let nested =
        [("ci/a.yml", "include: ci/b.yml\nfrom-a: {script: echo}\n"), ("ci/b.yml", "from-b: {script: echo}\n")];
    server.repository("group/tools", &nested);
    server.repository("group/parts", &[("templates/build.yml", COMPONENT)]);
    let work = root.join("group/parts.work");
    for tag in ["1.0.0", "1.2.0", "2.0.0"] {
        git(&work, &["tag", tag]);
    }
    git(&work, &["push", "-q", &root.join("group/parts.git").display().to_string(), "--tags"]);
    server
}

#[test]
fn projects_and_components_are_fetched_once_with_the_credentials_of_the_user() {
    let home = in_checkout(Home::empty(), FILE);
    let root = home.path("repositories");
    fs::create_dir_all(root.join("group")).expect("create the directory");
    let server = serve(&root);
    set_origin(&home, &server.url);
    let refused = listed(&home, &[]).expect_err("must be refused without a login");
    assert!(refused.contains(".gitlab-ci.yml:3: ") && refused.contains("group/tools"), "{refused}");
    let refused = listed(&home, &["--offline"]).expect_err("nothing is cached");
    assert!(refused.contains("--offline"), "{refused}");
    log_in(&home);
    let expected = ["from-b", "from-a", "own-1.2.0", "j"].map(str::to_owned);
    assert_eq!(listed(&home, &[]).expect("the pipeline must be valid"), expected);
    let requests = server.authorizations().len();
    assert!(requests > 0);
    assert_eq!(listed(&home, &["--offline"]).expect("the pipeline must be valid"), expected);
    assert_eq!(server.authorizations().len(), requests, "nothing is asked");
    // A new commit is fetched; offline, the old one stays.
    server.commit("group/tools", &[("ci/b.yml", "new: {script: echo}\n")], "second");
    assert_eq!(listed(&home, &["--offline"]).expect("the pipeline must be valid"), expected);
    assert_eq!(listed(&home, &[]).expect("the pipeline must be valid")[0], "new");
    assert_eq!(listed(&home, &["--offline"]).expect("the pipeline must be valid")[0], "new");
}

#[test]
fn a_missing_ref_version_or_file_is_refused_with_its_position() {
    let home = in_checkout(Home::empty(), FILE);
    let root = home.path("repositories");
    fs::create_dir_all(root.join("group")).expect("create the directory");
    let server = serve(&root);
    set_origin(&home, &server.url);
    log_in(&home);
    for (include, word) in [
        ("{project: group/tools, ref: none, file: ci/a.yml}", "no ref `none`"),
        ("{project: group/tools, file: ci/none.yml}", "ci/none.yml"),
        ("{project: group/none, file: a.yml}", "group/none"),
        ("{component: $CI_SERVER_FQDN/group/parts/build@3}", "`3`"),
        ("{component: $CI_SERVER_FQDN/group/parts/none@1}", "templates/none.yml"),
    ] {
        let text = format!("j: {{script: echo}}\ninclude:\n  - {include}\n");
        fs::write(home.path("checkout/.gitlab-ci.yml"), text).expect("write a file");
        let refused = listed(&home, &[]).expect_err(include);
        assert!(refused.starts_with(".gitlab-ci.yml:3: ") && refused.contains(word), "{include}: {refused}");
        assert_eq!(refused.lines().count(), 1, "{refused}");
    }
}

#[test]
fn remote_files_and_templates_come_over_http_and_their_hash_is_checked() {
    const REMOTE: &str = "remote: {script: echo}\n";
    let url = listen(None, |mut connection| {
        while let Some(request) = read_request(&mut connection) {
            let template = serde_json::json!({"name": "Own", "content": "template: {script: echo}\n"}).to_string();
            let answer = match request.path.as_str() {
                "/ci.yml" => Answer::new(200).body(REMOTE),
                "/moved.yml" => Answer::new(302).with("Location", "/ci.yml"),
                "/api/v4/templates/gitlab_ci_ymls/Own" => Answer::new(200).body(template),
                _ => Answer::new(404),
            };
            if write_answer(connection.get_mut(), &answer).is_err() {
                return;
            }
        }
    });
    let home = in_checkout(Home::empty(), "j: {script: echo}\n");
    set_origin(&home, &url);
    let write = |include: &str| {
        let text = format!("include: [{include}]\nj: {{script: echo}}\n");
        fs::write(home.path("checkout/.gitlab-ci.yml"), text).expect("write a file");
    };
    let hash = base64::engine::general_purpose::STANDARD.encode(digest(&SHA256, REMOTE.as_bytes()));
    write(&format!(
        "'{url}/moved.yml', {{template: Own.gitlab-ci.yml}}, {{remote: '{url}/ci.yml', integrity: 'sha256-{hash}'}}"
    ));
    let expected = ["remote", "template", "j"].map(str::to_owned);
    assert_eq!(listed(&home, &[]).expect("the pipeline must be valid"), expected);
    assert_eq!(listed(&home, &["--offline"]).expect("the pipeline must be valid"), expected);
    write(&format!("{{remote: '{url}/ci.yml', integrity: 'sha256-AAAA'}}"));
    assert!(listed(&home, &[]).expect_err("a changed include must be refused").contains(&hash));
    for include in [format!("'{url}/none.yml'"), "{template: None.gitlab-ci.yml}".to_owned()] {
        write(&include);
        let refused = listed(&home, &[]).expect_err("a missing include must be refused");
        assert!(refused.starts_with(".gitlab-ci.yml:1: ") && refused.lines().count() == 1, "{refused}");
    }
}

#[test]
fn submodules_are_in_the_tree_of_jobs_that_want_them() {
    let file = "
with: {variables: {GIT_SUBMODULE_STRATEGY: recursive}, script: [cat lib/inner]}
without: {script: ['test -d lib && test ! -e lib/inner && echo empty']}
";
    let home = in_checkout(Home::empty(), file);
    let (root, library) = (home.path("checkout"), home.path("library"));
    fs::create_dir(&library).expect("create the directory");
    git(&library, &["init", "-q", "-b", "main"]);
    fs::write(library.join("inner"), "from the submodule\n").expect("write a file");
    git(&library, &["add", "-A"]);
    git(&library, &["-c", "user.name=Dev", "-c", "user.email=dev@example.test", "commit", "-q", "-m", "first"]);
    let path = library.display().to_string();
    git(&root, &["-c", "protocol.file.allow=always", "submodule", "add", "-q", &path, "lib"]);
    fs::write(root.join("lib/inner"), "edited in the submodule\n").expect("write a file");
    let (output, text) = exec(&home, &[]);
    assert!(output.status.success() && text.contains("\nedited in the submodule\n"), "{text}");
    assert!(text.contains("\nempty\n"), "{text}");
}
