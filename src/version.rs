//! The program's name and version for servers, metrics and jobs.

pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The git revision of the build.
pub const REVISION: &str = env!("MAYFLY_REVISION");

/// The architecture in Go's spelling, which GitLab uses.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        other => other,
    }
}

/// The `User-Agent` of all requests.
pub fn user_agent() -> String {
    format!("mayfly {VERSION} ({REVISION}; rust; linux/{})", architecture())
}
