//! The job's own git settings, outside the repository: credentials and trusted certificates.

use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;

use super::config_file::{quoted, settings_text};
use super::{SourcesPlan, make_directory, remove, setting_scripts};

/// File name of git's configuration for all repositories of a job, in its temporary directory.
pub const GLOBAL_CONFIG: &str = "mayfly.global.gitconfig";

/// File name of the job's own git settings, in its temporary directory.
pub const EXTERNAL_CONFIG: &str = "mayfly.gitconfig";

/// File name of the certificates for the server, in its temporary directory.
pub const CA_CERTIFICATES: &str = "mayfly.ca.crt";

/// Files in the job's temporary directory that must be removed at the end of the job.
pub const SECRET_FILES: [&str; 5] =
    [GLOBAL_CONFIG, EXTERNAL_CONFIG, CA_CERTIFICATES, setting_scripts::TEMPLATE_LIST, setting_scripts::USER_LIST];

/// A credential helper that takes the password from the environment (gitcredentials(7)).
const LOGIN_HELPER: &str = "!f() { [ \"$1\" != get ] || echo \"password=$CI_JOB_TOKEN\"; }; f";

/// Writes the settings. `redirected`: the old and new URLs of repositories that have moved on their server.
pub fn write(plan: &SourcesPlan, redirected: &[(String, String)]) -> io::Result<()> {
    make_temporary_directory(plan)?;
    let mut text = String::new();
    if !plan.correlation_id.is_empty() {
        let header = format!("X-Gitaly-Correlation-ID: {}", plan.correlation_id);
        text.push_str(&format!("[http]\n\textraHeader = {}\n", quoted(&header)));
    }
    text.push_str("[transfer]\n\tbundleURI = true\n");
    if let Some(certificates) = &plan.ca_certificates {
        write_private(plan, CA_CERTIFICATES, certificates)?;
        let (host, path) = (crate::http::origin(&plan.url), plan.path_in_container(CA_CERTIFICATES));
        text.push_str(&format!("[http {}]\n\tsslCAInfo = {}\n", quoted(&host), quoted(&path.display().to_string())));
    }
    // If two rules match the same address, git applies the first.
    for (from, to) in redirected.iter().chain(&plan.rewrites) {
        text.push_str(&format!("[url {}]\n\tinsteadOf = {}\n", quoted(to), quoted(from)));
    }
    if let Some(host) = &plan.login {
        // An empty helper makes git ignore the credential helpers of the machine, which might store the token.
        text.push_str(&format!(
            "[credential {}]\n\thelper =\n\thelper = {}\n\tusername = gitlab-ci-token\n",
            quoted(host),
            quoted(LOGIN_HELPER)
        ));
        let global = format!(
            "[include]\n\tpath = ~/.config/git/config\n[include]\n\tpath = ~/.gitconfig\n{}[include]\n\tpath = {}\n",
            settings_text(&plan.user_settings),
            quoted(&plan.path_in_container(EXTERNAL_CONFIG).display().to_string())
        );
        write_private(plan, GLOBAL_CONFIG, &global)?;
    }
    write_private(plan, EXTERNAL_CONFIG, &text)
}

/// Creates the temporary directory, which only its owner can enter; replaces any other file at its path. For a job in a
/// container it exists already, with the container's user as owner.
fn make_temporary_directory(plan: &SourcesPlan) -> io::Result<()> {
    make_directory(&plan.temporary)?;
    if plan.temporary_in_container.is_some() {
        return Ok(());
    }
    fs::set_permissions(&plan.temporary, std::os::unix::fs::PermissionsExt::from_mode(0o700))
}

/// Writes a file that only its owner can read; removes any file or link at its path first. For a job in a container,
/// the directory excludes other users, and the container's user must be able to read the file.
fn write_private(plan: &SourcesPlan, name: &str, text: &str) -> io::Result<()> {
    use std::io::Write;
    let path = plan.temporary.join(name);
    remove::remove(&path)?;
    let mode = if plan.temporary_in_container.is_some() { 0o644 } else { 0o600 };
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(text.as_bytes())
}
