//! Plans configurations in memory, for the tests of this folder.

use serde_json::Value;

use super::memory::Memory;
use crate::pipeline::listing::Listing;
use crate::pipeline::plan::{Job, Plan};
use crate::pipeline::problem::{Class, Problem};
use crate::pipeline::request::PlanRequest;
use crate::pipeline::{JobRun, plan};

/// The plan of a request as JSON, or its problems.
pub fn listed(request: &PlanRequest<'_>) -> Result<Value, Vec<Problem>> {
    let plan = plan(request)?;
    Ok(serde_json::to_value(Listing { plan: &plan, run: &|_, _| JobRun::default() }).expect("encode as JSON"))
}

/// The plan of a configuration in one file, which must be valid.
pub fn planned(text: &str) -> Value {
    let memory = Memory::new(&[(".gitlab-ci.yml", text)]);
    listed(&memory.request()).unwrap_or_else(|problems| panic!("{text}: {problems:?}"))
}

/// The plan of files as JSON, or the classes of their problems, which must have a line.
pub fn outcome(files: &[(&str, &str)]) -> Result<Value, Vec<Class>> {
    listed(&Memory::new(files).request()).map_err(|problems| {
        assert!(problems.iter().all(|problem| problem.line > 0), "without a line: {problems:?}");
        problems.iter().map(|problem| problem.class).collect()
    })
}

/// The problems of files, which must be invalid.
pub fn refused(files: &[(&str, &str)]) -> Vec<Problem> {
    listed(&Memory::new(files).request()).expect_err(files[0].1)
}

/// The classes of the problems of a configuration in one file, which must be invalid.
pub fn classes(text: &str) -> Vec<Class> {
    refused(&[(".gitlab-ci.yml", text)]).iter().map(|problem| problem.class).collect()
}

/// A job of a plan as JSON.
pub fn job<'a>(listing: &'a Value, name: &str) -> &'a Value {
    let mut jobs = listing["jobs"].as_array().into_iter().flatten();
    jobs.find(|job| job["name"] == name).unwrap_or_else(|| panic!("no {name} in {listing}"))
}

/// A job of a plan.
pub fn job_of<'a>(plan: &'a Plan, name: &str) -> &'a Job {
    plan.jobs.iter().find(|job| &*job.name == name).expect("the job")
}

/// The names of the jobs of a plan as JSON.
pub fn names(listing: &Value) -> Vec<&str> {
    listing["jobs"].as_array().into_iter().flatten().filter_map(|job| job["name"].as_str()).collect()
}

/// A file with the given lines in a job, beside another job `o`.
pub fn with_job(lines: &str) -> String {
    format!("o: {{script: build}}\nj: {{script: x, {lines}}}\n")
}
