//! Reports of a run for other programs: JSON and JUnit.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::results::{JobResult, ResultStatus, RunStatus};
use crate::markup::escape;

/// The longest part of a job's name in a file name, in bytes.
const MAX_NAME: usize = 100;

/// The name of the file for a job's output.
pub fn log_name(job: &str) -> String {
    format!("{}.log", file_stem(job))
}

/// A name for files of a job, without an extension.
pub fn file_stem(job: &str) -> String {
    let plain = |c: char| if c.is_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '_' };
    let mut name = String::new();
    for character in job.chars().map(plain) {
        if name.len() + character.len_utf8() > MAX_NAME {
            break;
        }
        name.push(character);
    }
    // The digest keeps file names distinct if job names differ only in replaced characters.
    format!("{name}-{}", &crate::executor::docker::names::digest(job)[..8])
}

/// The directory of the output files, beside the report.
pub fn logs_beside(report: &Path) -> PathBuf {
    let mut name = report.as_os_str().to_owned();
    name.push(".logs");
    PathBuf::from(name)
}

/// Writes a JSON report.
pub fn write_json(path: &Path, status: RunStatus, jobs: &[JobResult]) -> Result<(), String> {
    let jobs: Map<String, Value> = crate::ordered::map(jobs.iter().map(|job| (job.name.clone(), job_entry(job))));
    let report = json!({"status": status.word(), "jobs": jobs});
    fs::write(path, format!("{report:#}\n")).map_err(|error| format!("{}: {error}", path.display()))
}

fn job_entry(job: &JobResult) -> Value {
    json!({
        "status": job.status.word(),
        "exit_code": job.exit_code,
        "duration": job.duration.map(|duration| duration.as_secs_f64()),
        "attempts": job.attempts,
        "coverage": job.coverage,
        "failure_reason": job.failure_reason.map(|reason| reason.as_str()),
        "message": job.message,
        "log": job.log.as_ref().map(|path| std::path::absolute(path).unwrap_or_else(|_| path.clone())),
    })
}

/// Writes a JUnit report.
pub fn write_junit(path: &Path, name: &str, jobs: &[JobResult]) -> Result<(), String> {
    let count = |wanted: &dyn Fn(ResultStatus) -> bool| jobs.iter().filter(|job| wanted(job.status)).count();
    let did_not_run = |status| {
        matches!(status, ResultStatus::Skipped | ResultStatus::Manual | ResultStatus::Waiting | ResultStatus::Canceled)
    };
    let seconds: f64 = jobs.iter().filter_map(|job| job.duration).map(|duration| duration.as_secs_f64()).sum();
    let mut text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n<testsuite name=\"{}\" tests=\"{}\" failures=\"{}\" \
         errors=\"0\" skipped=\"{}\" time=\"{seconds:.3}\">\n",
        escape(name),
        jobs.len(),
        count(&|status| status == ResultStatus::Failed),
        count(&did_not_run),
    );
    jobs.iter().for_each(|job| text.push_str(&test_case(job)));
    text.push_str("</testsuite>\n</testsuites>\n");
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}

/// A job as a test case.
fn test_case(job: &JobResult) -> String {
    let seconds = job.duration.unwrap_or_default().as_secs_f64();
    let (name, stage) = (escape(&job.name), escape(&job.stage));
    let lines: Vec<&str> = job.tail.iter().map(String::as_str).collect();
    let output = escape(&lines.join("\n"));
    let message = escape(job.message.as_deref().unwrap_or(job.status.word()));
    let result = match job.status {
        ResultStatus::Failed => format!("<failure message=\"{message}\">{output}</failure>"),
        ResultStatus::Success => String::new(),
        ResultStatus::Warning => format!("<system-out>{message}\n{output}</system-out>"),
        _ => format!("<skipped message=\"{}\"/>", job.status.word()),
    };
    format!("<testcase name=\"{name}\" classname=\"{stage}\" time=\"{seconds:.3}\">{result}</testcase>\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_names_are_distinct_and_contain_no_slash() {
        let names = ["a/b", "a_b", "../x", "t: [a, b]"].map(log_name);
        assert!(names.iter().all(|name| !name.contains('/') && name.ends_with(".log")), "{names:?}");
        assert_ne!(names[0], names[1]);
    }

    #[test]
    fn junit_is_valid_xml_for_any_output() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("junit.xml");
        let job = JobResult {
            name: "t: [\"<a>\"]".to_owned(),
            stage: "test".to_owned(),
            status: ResultStatus::Failed,
            is_blocking: false,
            exit_code: Some(1),
            duration: None,
            attempts: 1,
            coverage: None,
            failure_reason: None,
            message: Some("exit status 1 & more".to_owned()),
            log: None,
            tail: ["]]> \u{1} &".to_owned()].into(),
            command: None,
            kept: None,
        };
        write_junit(&path, "app", &[job]).expect("write the report");
        let text = fs::read_to_string(&path).expect("read the file");
        let document = roxmltree::Document::parse(&text).expect("must be XML");
        let case = document.descendants().find(|node| node.has_tag_name("testcase")).expect("a case");
        assert_eq!(case.attribute("name"), Some("t: [\"<a>\"]"));
    }
}
