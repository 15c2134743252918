//! What this program calls itself: to servers, in metrics, and in the environment of jobs.

/// Version of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The revision it was built from.
pub const REVISION: &str = env!("MAYFLY_REVISION");

/// The architecture as GitLab and Go spell it.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        other => other,
    }
}

/// The `User-Agent` of every request.
pub fn user_agent() -> String {
    format!("mayfly {VERSION} ({REVISION}; rust; linux/{})", architecture())
}
