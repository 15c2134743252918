#[test]
fn probe() {
    let Ok(list) = std::env::var("YAML_PROBE") else { return };
    let mut out = String::new();
    for path in std::fs::read_to_string(&list).expect("list").lines() {
        let text = String::from_utf8_lossy(&std::fs::read(path).expect("file")).into_owned();
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        let line = match super::parse(text, 0, &|line| line, &mut super::Budget::default()) {
            Ok(document) => serde_json::json!({"f": path, "v": document.root.to_json()}),
            Err(error) => serde_json::json!({"f": path, "e": error.message, "l": error.line}),
        };
        out += &line.to_string();
        out.push('\n');
    }
    std::fs::write(list + ".out", out).expect("write");
}
