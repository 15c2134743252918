//! "Did you mean …?" suggestions.

/// Longer words, in characters, get no suggestion, because the cost grows with their length.
const MAX_LENGTH: usize = 64;

/// The number of known words that are compared.
const MAX_CANDIDATES: usize = 1000;

/// The suggestion at the end of a message about an unknown word; empty if no known word is similar.
pub fn did_you_mean(word: &str, known: &[&str]) -> String {
    nearest(word, known).map(|near| format!("; did you mean `{near}`?")).unwrap_or_default()
}

fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let length = word.chars().count();
    if length > MAX_LENGTH {
        return None;
    }
    let limit = 1 + length / 4;
    let distances = known.iter().take(MAX_CANDIDATES).map(|candidate| (distance(word, candidate), *candidate));
    distances.filter(|(distance, _)| *distance <= limit).min_by_key(|(distance, _)| *distance).map(|(_, near)| near)
}

/// The edit distance of two words.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(MAX_LENGTH + 1).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut previous = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let change = previous + usize::from(!x.eq_ignore_ascii_case(y));
            previous = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(previous + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggests_similar_words_only() {
        let known = ["script", "before_script", "artifacts", "only"];
        assert_eq!(did_you_mean("artefacts", &known), "; did you mean `artifacts`?");
        assert_eq!(did_you_mean("srcipt", &known), "; did you mean `script`?");
        assert_eq!(did_you_mean("banana", &known), "");
    }
}
