//! Git settings that scripts before git (`pre_get_sources_script`) make. The agent adds shell commands to such a script
//! that write the settings to lists in the job's temporary directory; the plan for git takes them from there.

use crate::executor::shell::quote;

/// The file where a script before git writes settings for the job's repository, in the temporary directory (GitLab
/// documents it for `lfs.url`).
pub const TEMPLATE: &str = "git-template/config";

/// The directory of that file.
pub const TEMPLATE_DIRECTORY: &str = "git-template";

/// File name of the settings in [`TEMPLATE`], as the script's git lists them, in the temporary directory.
pub const TEMPLATE_LIST: &str = "mayfly.template.settings";

/// File name of the settings for all repositories (`git config --global`, `--system`), as the script's git lists them.
pub const USER_LIST: &str = "mayfly.user.settings";

/// The settings that a script before git lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListedSettings {
    /// Those for the job's repository. The agent's git reads the others by itself.
    Repository,
    /// Those for the job's repository, and those for all repositories of the user.
    RepositoryAndUser,
}

/// Shell commands before the lines of a script before git: they remove the settings of an earlier job.
pub fn removal_commands(temporary: &str) -> String {
    let paths = [TEMPLATE_DIRECTORY, TEMPLATE_LIST, USER_LIST].map(|name| quote(&format!("{temporary}/{name}")));
    format!("rm -rf {}\n", paths.join(" "))
}

/// Shell commands after the lines of such a script: they list the settings that the lines made, unless they have done
/// so already.
pub fn listing_commands(temporary: &str, listed: ListedSettings) -> String {
    let path = |name: &str| quote(&format!("{temporary}/{name}"));
    let user = match listed {
        ListedSettings::Repository => String::new(),
        ListedSettings::RepositoryAndUser => {
            format!("{{ git config --system -z --list; git config --global -z --list; }} >{}; ", path(USER_LIST))
        }
    };
    format!(
        "if [ ! -e {list} ] && command -v git >/dev/null 2>&1; then (umask 077; : >{list}; {user}\
         [ ! -f {template} ] || git config -f {template} -z --list >{list}) 2>/dev/null || :; fi\n",
        template = path(TEMPLATE),
        list = path(TEMPLATE_LIST),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::sources::config_file::parse;

    #[test]
    fn scripts_list_their_settings_in_every_shell() {
        for shell in ["bash", "dash", "busybox ash"] {
            let directory = tempfile::tempdir().expect("a directory");
            let temporary = directory.path().join("it's.tmp");
            std::fs::create_dir_all(temporary.join(TEMPLATE_DIRECTORY)).expect("create the directory");
            std::fs::write(temporary.join(TEMPLATE), "[lfs]\n\turl = stale\n\tconcurrenttransfers = 3\n")
                .expect("write the file");
            let path = temporary.display().to_string();
            let script = format!(
                "set -e\n{}mkdir -p \"$T/{TEMPLATE_DIRECTORY}\"\ngit config -f \"$T/{TEMPLATE}\" lfs.url fresh\n\
                 git config --global http.proxy p\n{after}git config -f \"$T/{TEMPLATE}\" lfs.url late\n{after}echo done",
                removal_commands(&path),
                after = listing_commands(&path, ListedSettings::RepositoryAndUser)
            );
            let mut words = shell.split(' ');
            let mut command = std::process::Command::new(words.next().expect("a program"));
            command.args(words).args(["-c", &script]).env("T", &temporary);
            command.env("GIT_CONFIG_GLOBAL", directory.path().join("global")).env("GIT_CONFIG_SYSTEM", "/dev/null");
            let output = command.output().expect("a shell");
            assert_eq!(String::from_utf8_lossy(&output.stdout), "done\n", "{shell}: {output:?}");
            let read = |name: &str| parse(&std::fs::read_to_string(temporary.join(name)).expect("read the file"));
            assert_eq!(read(TEMPLATE_LIST), [("lfs.url".to_owned(), "fresh".to_owned())], "{shell}");
            assert_eq!(read(USER_LIST), [("http.proxy".to_owned(), "p".to_owned())], "{shell}");
        }
    }
}
