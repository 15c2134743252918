//! Properties that hold for any input. Limits are checked by size, not by time.

use std::path::Path;

use proptest::prelude::*;

use super::memory::Memory;
use crate::pipeline::listing::Listing;
use crate::pipeline::problem::{Class, Problem};
use crate::pipeline::{JobRun, plan};
use crate::sys::counted::measure;

/// The memory that planning may hold.
const MAX_BYTES: usize = 50_000_000;
/// The number of allocations that planning may make. A release build makes more than 10 of them in a microsecond,
/// together with the work between them, so that this is a bound of 100 ms.
const MAX_ALLOCATIONS: usize = 1_000_000;

/// Plans and lists a configuration, and checks that this stays within the limits.
fn plan_within_limits(text: &[u8]) -> Result<String, Vec<Problem>> {
    let (outcome, used) = measure(|| plan_as_json(text));
    assert!(used.bytes <= MAX_BYTES && used.allocations <= MAX_ALLOCATIONS, "{used:?} for {text:?}");
    outcome
}

fn plan_as_json(text: &[u8]) -> Result<String, Vec<Problem>> {
    let mut memory = Memory::new(&[("tpl.yml", "t: {script: x}\n"), ("ci/base.yml", ".b: {script: x}\n")]);
    memory.files.insert(".gitlab-ci.yml".to_owned(), text.to_vec());
    let plan = plan(&memory.request())?;
    Ok(serde_json::to_string(&Listing { plan: &plan, run: &|_, _| JobRun::default() }).expect("encode as JSON"))
}

/// The files of the shared cases.
fn samples() -> Vec<Vec<u8>> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/ci-yaml");
    let folders = std::fs::read_dir(data).expect("the cases").map(|entry| entry.expect("an entry").path());
    let mut paths: Vec<_> = folders.map(|path| path.join(".gitlab-ci.yml")).filter(|path| path.is_file()).collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).expect("a file")).collect()
}

#[derive(Clone, Debug)]
enum Mutation {
    Delete(usize, usize),
    Insert(usize, String),
    Double(usize, usize),
}

fn any_mutation() -> impl Strategy<Value = Mutation> {
    let pieces = "(\\[|\\]|\\{|\\}|: |- |\n|\n  |'|\"|\\*a|&a |<<: |!reference |null|~|0|-1|\\$A|\\$\\[\\[|\\]\\]|---\n|#|\t|é|\u{0}|script|needs|x)";
    prop_oneof![
        (any::<usize>(), 1..20_usize).prop_map(|(at, length)| Mutation::Delete(at, length)),
        (any::<usize>(), pieces).prop_map(|(at, text)| Mutation::Insert(at, text)),
        (any::<usize>(), 1..60_usize).prop_map(|(at, length)| Mutation::Double(at, length)),
    ]
}

fn apply(text: &mut Vec<u8>, mutation: &Mutation) {
    let (Mutation::Delete(at, _) | Mutation::Insert(at, _) | Mutation::Double(at, _)) = mutation;
    let at = at % (text.len() + 1);
    match mutation {
        Mutation::Delete(_, length) => drop(text.drain(at..(at + length).min(text.len()))),
        Mutation::Insert(_, piece) => drop(text.splice(at..at, piece.bytes())),
        Mutation::Double(_, length) => {
            let piece = text[at..(at + length).min(text.len())].to_vec();
            drop(text.splice(at..at, piece));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_mutation_gives_a_plan_or_a_problem_with_a_position(
        sample in any::<prop::sample::Index>(),
        mutations in prop::collection::vec(any_mutation(), 1..6),
    ) {
        let samples = samples();
        let mut text = sample.get(&samples).clone();
        mutations.iter().for_each(|mutation| apply(&mut text, mutation));
        let first = plan_within_limits(&text);
        if let Err(problems) = &first {
            prop_assert!(!problems.is_empty());
            for problem in problems {
                prop_assert!(!problem.file.is_empty(), "{problem:?}");
                prop_assert!(problem.line > 0, "{problem:?}");
                prop_assert!(!problem.message.is_empty());
            }
        }
        prop_assert_eq!(first, plan_as_json(&text));
    }
}

fn first_class(text: &str) -> Option<Class> {
    plan_as_json(text.as_bytes()).err().map(|problems| problems[0].class)
}

#[test]
fn refuses_configurations_that_multiply() {
    let list = |item: &str| [item; 10].join(", ");
    let chain = |line: &dyn Fn(usize) -> String| (0..9).map(line).collect::<String>();
    let references = chain(&|n| format!(".c{n}: {{s: [{}]}}\n", list(&format!("!reference [.c{}, s]", n + 1))));
    let references = format!("{references}.c9: {{s: [x]}}\nj: {{script: [!reference [.c0, s]]}}\n");
    assert_eq!(first_class(&references), Some(Class::TooBig));
    let keys: String = (0..8).map(|n| format!("K{n}: [{}], ", list("a"))).collect();
    assert_eq!(
        first_class(&format!("j: {{script: x, parallel: {{matrix: [{{{keys}}}]}}}}\n")),
        Some(Class::MatrixTooBig)
    );
    let doubling: String = (0..60).map(|n| format!("V{n}: '$V{0}$V{0}', ", n + 1)).collect();
    let text = format!("variables: {{{doubling} V60: xxxxxxxx}}\nj: {{script: x}}\n");
    assert_eq!(first_class(&text), Some(Class::TooBig));
    let rule = |n: usize| format!("  - if: $X =~ /(a|b|c){{1,900}}x{n}/\n");
    let rules = (0..100).map(rule).collect::<String>();
    let problems = plan_as_json(format!("j:\n  script: x\n  rules:\n{rules}").as_bytes()).expect_err("must be refused");
    assert_eq!((problems[0].class, problems.len()), (Class::IfSyntax, 1));
    let aliases = format!("a: &a '{}'\nj: {{script: [{}]}}\n", "x".repeat(1 << 20), vec!["*a"; 3000].join(", "));
    assert_eq!(first_class(&aliases), Some(Class::YamlSyntax));
}

#[test]
fn entries_from_a_merge_key_have_a_position() {
    let problems = plan_as_json(b".a: &a\n  scirpt: x\nj: {<<: *a}\n").expect_err("must be refused");
    assert_eq!((problems[0].class, problems[0].line, problems.len()), (Class::UnknownKeyword, 2, 1), "{problems:?}");
    let problems = plan_as_json(b"<<: {.a: x}\n").expect_err("must be refused");
    assert_eq!((problems[0].class, problems[0].line), (Class::NoVisibleJob, 1));
}

#[test]
fn plans_large_files() {
    let keys: String = (0..90_000).map(|n| format!("K{n}: v\n  ")).collect();
    let text = format!("variables:\n  {keys}\nj: {{script: x}}\n");
    assert!(plan_as_json(text.as_bytes()).is_ok());
    let jobs: String = (0..10_000).map(|n| format!("j{n}: {{script: [echo {n}], needs: []}}\n")).collect();
    let memory = Memory::new(&[(".gitlab-ci.yml", &jobs)]);
    assert_eq!(plan(&memory.request()).expect("the pipeline must be valid").jobs.len(), 10_000);
}

/// Configurations that multiply their values or nest deeply stay within the limits on memory and allocations as well.
#[test]
fn mutations_that_multiply_stay_within_the_limits() {
    let list = |item: &str| [item; 10].join(", ");
    let aliases = (1..9).map(|n| format!(".a{n}: &a{n} [{}]\n", list(&format!("*a{}", n - 1)))).collect::<String>();
    let matrix: String = (0..4).map(|n| format!("K{n}: [a, b, c], ")).collect();
    let jobs: String = (0..200).map(|n| format!("j{n}: {{extends: .b, script: x, needs: []}}\n")).collect();
    for text in [
        format!(".a0: &a0 [x]\n{aliases}j: {{script: *a8}}\n"),
        format!("j: {{script: x, parallel: {{matrix: [{{{matrix}}}]}}}}\n"),
        format!(".b: {{variables: {{A: $B, B: $C, C: $D}}, rules: [{{if: $A}}, {{when: always}}]}}\n{jobs}"),
        "[".repeat(100_000),
        "a: ".repeat(50_000),
        format!("j: {{script: [{}]}}\n", "[".repeat(5000)),
        "&a [*a, *a]".to_owned(),
        "? ".repeat(100_000),
        "- ".repeat(100_000),
        format!("j: {{script: x, rules: [{{if: '{}'}}]}}\n", "(".repeat(20_000)),
        format!("j: {{script: 'x', rules: [{{changes: ['{}']}}]}}\n", "{a,".repeat(3000)),
    ] {
        if let Err(problems) = plan_within_limits(text.as_bytes()) {
            assert!(problems.iter().all(|problem| problem.line > 0), "{problems:?}");
        }
    }
}
