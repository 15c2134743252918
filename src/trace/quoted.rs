//! The forms in which shells print a secret under `set -x`: `CI_DEBUG_TRACE` traces the exports of a job's variables.

/// The forms of `value` in a trace of bash, dash or busybox; empty if all are equal to the value itself.
pub fn forms(value: &str) -> Vec<Vec<u8>> {
    let mut forms = Vec::new();
    if value.contains('\'') {
        // bash closes the quotes, escapes one quote and reopens them; the others put a run of quotes into double
        // quotes.
        forms.push(value.replace('\'', r"'\''").into_bytes());
        forms.push(double_quoted(value).into_bytes());
    }
    // bash writes $'…' if a character is not printable, which depends on its locale.
    if value.chars().any(char::is_control) {
        forms.push(ansi_c_quoted(value, NonAscii::Kept));
    }
    if value.chars().any(|c| c.is_control() || !c.is_ascii()) {
        forms.push(ansi_c_quoted(value, NonAscii::Escaped));
    }
    forms.retain(|form| form != value.as_bytes());
    forms.dedup();
    forms
}

/// `a'"'"'b`: the text before and after runs of quotes.
fn double_quoted(value: &str) -> String {
    let mut form = String::with_capacity(value.len() + 8);
    let mut rest = value;
    while let Some(at) = rest.find('\'') {
        let (plain, quotes) = rest.split_at(at);
        let after = quotes.trim_start_matches('\'');
        form.push_str(&format!("{plain}'\"{}\"", &quotes[..quotes.len() - after.len()]));
        // At the end no quotes are reopened.
        form.push_str(if after.is_empty() { "" } else { "'" });
        rest = after;
    }
    form + rest
}

/// How bash prints characters outside ASCII, which depends on its locale.
#[derive(Clone, Copy, PartialEq, Eq)]
enum NonAscii {
    Kept,
    Escaped,
}

/// The content of `$'…'` (ANSI-C quoting of bash).
fn ansi_c_quoted(value: &str, non_ascii: NonAscii) -> Vec<u8> {
    let mut form = Vec::with_capacity(value.len() + 8);
    for c in value.chars() {
        let letter = match c {
            '\x1b' => 'E',
            '\x07' => 'a',
            '\x0b' => 'v',
            '\x08' => 'b',
            '\x0c' => 'f',
            '\n' => 'n',
            '\r' => 'r',
            '\t' => 't',
            '\\' => '\\',
            '\'' => '\'',
            c if c.is_ascii_control() || (non_ascii == NonAscii::Escaped && !c.is_ascii()) => {
                let mut bytes = [0; 4];
                let octal = c.encode_utf8(&mut bytes).bytes().map(|byte| format!("\\{byte:03o}"));
                form.extend(octal.flat_map(String::into_bytes));
                continue;
            }
            c => {
                form.extend(c.encode_utf8(&mut [0; 4]).bytes());
                continue;
            }
        };
        form.extend([b'\\', letter as u8]);
    }
    form
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use crate::trace::mask::Masker;
    use crate::trace::patterns::Masks;

    /// The trace of a shell that exports the value as the agent's scripts do.
    fn trace(shell: &[&str], value: &str, locale: &str) -> Vec<u8> {
        let quoted = value.replace('\'', r"'\''");
        let script = format!("set -o xtrace\nexport SECRET='{quoted}'\n: \"$SECRET\"\n");
        let mut command = Command::new(shell[0]);
        let command = command.args(&shell[1..]).args(["-c", &script]).env_clear().env("LC_ALL", locale);
        command.output().expect("a shell").stderr
    }

    #[test]
    fn a_traced_export_shows_no_secret() {
        for value in [
            "it's-a-secret",
            "'begins-and-ends'",
            "two''in-a-row",
            "'''",
            "with space and 'quote'",
            "tab\tand\\backslash'quote",
            "short\nlines\nall",
            "bell\x07and\x1bescape\x01",
            "umläut-geheim",
            "umläut\tgeheim",
        ] {
            let masks = Masks::new(&[value.to_owned()], &[]);
            for shell in [&["bash"][..], &["dash"], &["busybox", "sh"]] {
                for locale in ["C", "C.UTF-8"] {
                    let traced = trace(shell, value, locale);
                    let mut shown = Vec::new();
                    let mut masker = Masker::new(&masks);
                    masker.push(&traced, &mut shown);
                    masker.finish(&mut shown);
                    let shown = String::from_utf8_lossy(&shown).into_owned();
                    // Only quotes remain beside the mask.
                    let plain = shown.replace("[MASKED]", "").replace("export", "").replace("SECRET=", "");
                    let rest = plain.trim_matches(|c: char| c.is_whitespace() || "+:'\"$\\".contains(c));
                    let rest: String = rest.chars().filter(|c| !c.is_whitespace() && !"+:'\"$".contains(*c)).collect();
                    assert_eq!(rest, "", "{shell:?} {locale} {value:?}: {shown}");
                    assert!(shown.matches("[MASKED]").count() >= 2, "{shell:?} {locale} {value:?}: {shown}");
                }
            }
        }
    }
}
