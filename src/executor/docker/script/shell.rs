//! The shell in the container: how it is found, and the text of its standard input.

use super::ContainerScript;
use crate::executor::shell::quote;

/// Finds and starts the best shell of the image.
const FIND_SHELL: &str = "for shell in /usr/local/bin/bash /usr/bin/bash /bin/bash /usr/local/bin/sh /usr/bin/sh \
                          /bin/sh /busybox/sh; do if [ -x $shell ]; then exec $shell; fi; done; echo shell not found; \
                          exit 1";
/// As [`FIND_SHELL`], but without bash, for runners with `shell = "sh"`.
const FIND_SH: &str = "for shell in /usr/local/bin/sh /usr/bin/sh /bin/sh /busybox/sh; do if [ -x $shell ]; then exec \
                       $shell; fi; done; echo shell not found; exit 1";

/// The command of a job's container.
pub fn command(shell: Option<&str>) -> Vec<String> {
    let find = if shell == Some("sh") { FIND_SH } else { FIND_SHELL };
    ["sh", "-c", find].map(str::to_owned).to_vec()
}

/// A command that reports the shell and its user before the script is sent.
pub fn prologue(marker: &str) -> String {
    format!("printf '\\036%s %s\\036\\n' {marker} \"$(id -u 2>/dev/null) $(id -g 2>/dev/null)\"\n")
}

/// The input of the shell: it redirects the output to the named pipes if they can be opened, and runs the script.
pub fn script(plan: &ContainerScript) -> String {
    let (output, error) = (quote(&plan.output_fifos.0), plan.output_fifos.1.as_deref().map(quote));
    let (opened, error) = match error {
        Some(error) => (format!("[ -p {output} ] && [ -w {output} ] && [ -p {error} ] && [ -w {error} ]"), error),
        None => (format!("[ -p {output} ] && [ -w {output} ]"), "&1".to_owned()),
    };
    let redirect = if error == "&1" { "2>&1".to_owned() } else { format!("2>{error}") };
    let merged = if error == "&1" { "exec 2>&1" } else { ":" };
    format!("if {opened}; then exec >{output} {redirect}; else {merged}; fi\n{}", plan.script)
}
