//! Interactive questions of `register`.

use std::io::{self, BufRead, IsTerminal, Write};

/// Whether `register` may ask.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum AskMode {
    Interactive,
    /// `--non-interactive`.
    NonInteractive,
}

/// The given value, else the answer to a question. Fails if there is neither.
pub fn given_or_asked(given: Option<String>, mode: AskMode, flag: &str, question: &str) -> Result<String, String> {
    if let Some(given) = given.filter(|given| !given.is_empty()) {
        return Ok(given);
    }
    let missing = || format!("--{flag} is missing; add it to the command");
    if mode == AskMode::NonInteractive {
        return Err(missing());
    }
    Some(ask(question)?).filter(|answer| !answer.is_empty()).ok_or_else(missing)
}

/// The name of the runner: given, answered, or the host name.
pub fn name(given: Option<String>, mode: AskMode) -> Result<String, String> {
    if let Some(given) = given.filter(|given| !given.is_empty()) {
        return Ok(given);
    }
    let hostname = nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned();
    if mode == AskMode::NonInteractive {
        return Ok(hostname);
    }
    let answer = ask(&format!("Enter a name for the runner [{hostname}]"))?;
    Ok(if answer.is_empty() { hostname } else { answer })
}

/// Asks a question on standard output and reads the answer from standard input.
pub fn ask(question: &str) -> Result<String, String> {
    if io::stdin().is_terminal() {
        print!("{question}: ");
    } else {
        println!("{question}:");
    }
    let flushed = io::stdout().flush();
    let mut line = String::new();
    flushed
        .and_then(|()| io::stdin().lock().read_line(&mut line))
        .map_err(|error| format!("cannot read the answer: {error}"))?;
    if line.is_empty() {
        return Err(format!(
            "standard input ended before the answer to `{question}`; use --non-interactive with flags"
        ));
    }
    Ok(line.trim().to_owned())
}
