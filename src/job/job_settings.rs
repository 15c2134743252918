//! Creates a job from the journal: derives its settings from the payload, within the limits of the runner.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::context::{Job, JobSettings, RunnerContext};
use super::control::JobControl;
use super::deadlines::Deadlines;
use super::flags::{self, Flags};
use super::{inputs, sources, variable_checks};
use crate::executor::ConcurrentIds;
use crate::executor::job_dirs::JobDirs;
use crate::failure::JobError;
use crate::journal::Record;
use crate::payload::variables::Variables;
use crate::payload::{Payload, Variable};
use crate::trace::FilterSpec;
use crate::version::{REVISION, VERSION, architecture};

/// The length of the shortest token that is masked. A shorter one would match parts of ordinary lines.
const MIN_TOKEN_LENGTH: usize = 8;

impl<'a> Job<'a> {
    /// Creates a job from the journal. The second result is an error if the payload requests something that is not
    /// allowed: the job then fails in its first stage.
    pub fn new(
        context: &'a RunnerContext,
        record: &Record,
        mut payload: Payload,
        control: &Arc<JobControl>,
    ) -> (Self, Result<(), JobError>) {
        let filled_in = context.fill_in_inputs(&mut payload);
        let (settings, allowed) = context.settings(&payload, record.concurrent, record.progress.dirs.as_ref());
        let deadlines = Deadlines::new(record.began, &context.runner, &payload, &settings.variables);
        let job = Self {
            context,
            payload,
            payload_text: record.payload.clone(),
            settings,
            control: Arc::clone(control),
            deadlines,
            began: record.began,
            concurrent: record.concurrent,
            request_id: record.request_id.clone(),
            log_prefix: record.offer.as_ref().map_or(0, |offered| offered.offer.trace.text.len() as u64),
        };
        (job, filled_in.and(allowed))
    }
}

impl RunnerContext {
    /// Interpolates the job's inputs. Fails as [`inputs::fill_in`] does.
    fn fill_in_inputs(&self, payload: &mut Payload) -> Result<(), JobError> {
        if payload.inputs.is_empty() || !self.flags(payload).0.is_on(flags::FF_ENABLE_JOB_INPUTS_INTERPOLATION) {
            return Ok(());
        }
        inputs::fill_in(payload)
    }

    /// The job's feature flags, and warnings about them.
    fn flags(&self, payload: &Payload) -> (Flags, Vec<String>) {
        let configured = |name: &str| {
            self.runner.environment.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.clone())
        };
        let variable = |name: &str| {
            let own = payload.variables.iter().rev().find(|variable| variable.key == name);
            own.map(|variable| variable.value.clone()).or_else(|| configured(name))
        };
        Flags::resolve(&self.runner.feature_flags, &variable)
    }

    /// Derives the settings from the payload. `settled` are the directories of a resumed job. The second result is an
    /// error if the job requests something that is not allowed.
    fn settings(
        &self,
        payload: &Payload,
        concurrent: ConcurrentIds,
        settled: Option<&JobDirs>,
    ) -> (JobSettings, Result<(), JobError>) {
        let (flags, mut warnings) = self.flags(payload);
        let configured = self.runner.tls.ca_file.as_ref().and_then(|path| std::fs::read_to_string(path).ok());
        let ca_certificates = configured.or_else(|| self.coordinator.certificates());
        let variables_in =
            |dirs: &JobDirs| self.variables(payload, &flags, dirs, concurrent, ca_certificates.as_deref());
        let (dirs, allowed) = match settled.or(self.local.as_ref().map(|local| &local.dirs)) {
            Some(fixed) => (fixed.clone(), Ok(())),
            None => self.job_dirs(payload, concurrent.of_project, &variables_in),
        };
        let variables = variables_in(&dirs);
        let mut allowed_debug_switch = |key: &str| {
            let wanted = variables.boolean(key).unwrap_or(false);
            if wanted && self.runner.debug_trace_disabled {
                warnings.push(format!("{key} is set, but this runner does not allow it (debug_trace_disabled)"));
            }
            wanted && !self.runner.debug_trace_disabled
        };
        let debug = allowed_debug_switch("CI_DEBUG_TRACE");
        let debug_services = allowed_debug_switch("CI_DEBUG_SERVICES");
        warnings.extend(variable_checks::name_warning(&variables));
        warnings.extend(variable_checks::warnings(&variables, Duration::from_secs(payload.timeout_seconds())));
        let filters = FilterSpec {
            masks: secrets(&variables, payload),
            token_prefixes: payload.features.token_mask_prefixes.clone(),
            timestamps: flags.is_on(flags::FF_TIMESTAMPS),
            limit: self.runner.output_limit,
        };
        (JobSettings { dirs, variables, flags, filters, debug, debug_services, warnings, ca_certificates }, allowed)
    }

    /// The job's directories: those that the job requests, otherwise the default ones.
    fn job_dirs(
        &self,
        payload: &Payload,
        concurrent: u32,
        variables: &dyn Fn(&JobDirs) -> Variables,
    ) -> (JobDirs, Result<(), JobError>) {
        let default = self.executor.dirs(self, payload, concurrent, variables);
        let variables = variables(&default);
        let Some(path) = variables.value("GIT_CLONE_PATH").filter(|path| !path.is_empty()) else {
            let empty = variables.value("GIT_STRATEGY").is_some_and(|strategy| strategy == "empty");
            return (if empty { default.without_checkout() } else { default }, Ok(()));
        };
        if !self.runner.custom_build_dir {
            let error = JobError::configuration(
                "GIT_CLONE_PATH is set, but this runner does not allow it; set [runners.custom_build_dir] enabled = \
                 true",
            );
            return (default, Err(error));
        }
        match default.with_project(&path) {
            Ok(moved) => (moved, Ok(())),
            Err(error) => (default, Err(error)),
        }
    }

    /// All variables in order of precedence, lowest first: flags, configuration, runner, job, fixed ones.
    fn variables(
        &self,
        payload: &Payload,
        flags: &Flags,
        dirs: &JobDirs,
        concurrent: ConcurrentIds,
        ca_certificates: Option<&str>,
    ) -> Variables {
        let seen = |path: &Path| dirs.as_seen_by_job(path).display().to_string();
        let mut variables = Variables::new(&dirs.as_seen_by_job(&dirs.temporary));
        for (name, on) in flags.all() {
            variables.set(name, on.to_string());
        }
        if let Some(image) = self.executor.image(self, payload) {
            variables.push(expanded_variable("CI_JOB_IMAGE", image));
        }
        variables.set("CI_RUNNER_SHORT_TOKEN", self.runner.token.short());
        for (key, value) in &self.runner.environment {
            variables.push(expanded_variable(key, value));
        }
        variables.set("CI_BUILDS_DIR", seen(&dirs.builds));
        variables.set("CI_PROJECT_DIR", seen(&dirs.project));
        variables.set("CI_CONCURRENT_ID", concurrent.of_runner.to_string());
        variables.set("CI_CONCURRENT_PROJECT_ID", concurrent.of_project.to_string());
        variables.set("CI_SERVER", "yes");
        variables.set("CI_JOB_STATUS", "running");
        variables.set("CI_JOB_TIMEOUT", payload.timeout_seconds().to_string());
        self.push_certificates(&mut variables, ca_certificates);
        for variable in payload.variables.iter().filter(|variable| !variable.key.starts_with("FF_")) {
            variables.push(variable.clone());
        }
        if flags.is_on(flags::FF_GIT_URLS_WITHOUT_TOKENS) {
            variables.set("GIT_CONFIG_GLOBAL", seen(&dirs.temporary.join(sources::GLOBAL_CONFIG)));
        }
        variables.set(self.executor.environment_marker(), "true");
        variables.set("CI_RUNNER_VERSION", VERSION);
        variables.set("CI_RUNNER_REVISION", REVISION);
        variables.set("CI_RUNNER_EXECUTABLE_ARCH", format!("linux/{}", architecture()));
        variables.set("RUNNER_TEMP_PROJECT_DIR", seen(&dirs.temporary));
        if flags.is_on(flags::FF_NETWORK_PER_BUILD)
            && let Some(network) = self.executor.own_network(self, payload, concurrent.of_project)
        {
            variables.set("CI_BUILD_NETWORK_NAME", network);
        }
        variables
    }

    fn push_certificates(&self, variables: &mut Variables, ca_certificates: Option<&str>) {
        let read = |path: &Option<PathBuf>| path.as_ref().and_then(|path| std::fs::read_to_string(path).ok());
        let files = [
            ("CI_SERVER_TLS_CA_FILE", ca_certificates.map(str::to_owned), true),
            ("CI_SERVER_TLS_CERT_FILE", read(&self.runner.tls.cert_file), true),
            ("CI_SERVER_TLS_KEY_FILE", read(&self.runner.tls.key_file), false),
        ];
        for (key, value, public) in files {
            if let Some(value) = value {
                variables.push(Variable { key: key.to_owned(), value, public, file: true, raw: true, masked: false });
            }
        }
    }
}

/// A public variable whose value may refer to other variables.
fn expanded_variable(key: &str, value: &str) -> Variable {
    Variable { key: key.to_owned(), value: value.to_owned(), public: true, ..Variable::default() }
}

/// The values to mask: masked variables, and the job's token.
fn secrets(variables: &Variables, payload: &Payload) -> Vec<String> {
    let token = Some(&payload.token).filter(|token| token.len() >= MIN_TOKEN_LENGTH);
    variables.secrets().into_iter().chain(token.cloned()).collect()
}
