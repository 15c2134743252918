//! Metrics of the machine: notices of the cloud, refused terminations, fetched tokens, disk space.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::statvfs::{Statvfs, statvfs};

use super::text::{MetricKind, Page};
use crate::sync;

/// A counter with one label. It exports every value of the label from the start, because an alert on an increase needs
/// the initial zero.
struct Counter<const N: usize> {
    name: &'static str,
    help: &'static str,
    label: &'static str,
    values: [&'static str; N],
    counts: [AtomicU64; N],
}

impl<const N: usize> Counter<N> {
    const fn new(name: &'static str, help: &'static str, label: &'static str, values: [&'static str; N]) -> Self {
        Self { name, help, label, values, counts: [const { AtomicU64::new(0) }; N] }
    }

    fn count(&self, value: &str) {
        if let Some(at) = self.values.iter().position(|known| *known == value) {
            self.counts[at].fetch_add(1, Ordering::Relaxed);
        }
    }

    fn write(&self, page: &mut Page) {
        let mut metric = page.metric(self.name, MetricKind::Counter, self.help);
        for (value, count) in self.values.iter().zip(&self.counts) {
            metric.sample(&[(self.label, value)], count.load(Ordering::Relaxed) as f64);
        }
    }
}

static NOTICES: Counter<4> = Counter::new(
    "mayfly_spot_notices_total",
    "Notices of the cloud that it will interrupt the instance, by kind.",
    "notice",
    ["terminate", "stop", "hibernate", "rebalance"],
);
static REFUSALS: Counter<5> = Counter::new(
    "mayfly_termination_refusals_total",
    "Requests to terminate this instance that its Auto Scaling group refused or did not answer, by reason.",
    "reason",
    ["at_minimum", "denied", "throttled", "unreachable", "not_in_a_group"],
);
static TOKENS_FETCHED: Counter<2> = Counter::new(
    "mayfly_token_fetches_total",
    "Runner tokens that the agent fetched from Parameter Store or Secrets Manager, by result.",
    "result",
    ["success", "failure"],
);

/// Counts an interruption notice: `terminate`, `stop`, `hibernate` or `rebalance`.
pub fn spot_notice(kind: &str) {
    NOTICES.count(kind);
}

/// Counts a refused termination of the instance: `at_minimum`, `denied`, `throttled`, `unreachable` or
/// `not_in_a_group`.
pub fn termination_refused(reason: &str) {
    REFUSALS.count(reason);
}

/// Counts a fetch of a runner token.
pub fn token_fetched(success: bool) {
    TOKENS_FETCHED.count(if success { "success" } else { "failure" });
}

/// The number of build directories that were removed because of the limits.
static BUILDS_REMOVED: AtomicU64 = AtomicU64::new(0);
static BUILD_BYTES_REMOVED: AtomicU64 = AtomicU64::new(0);
static IMAGES_REMOVED: AtomicU64 = AtomicU64::new(0);
/// The size of the kept build directories in bytes, by root directory.
static BUILD_BYTES: Mutex<BTreeMap<PathBuf, u64>> = Mutex::new(BTreeMap::new());

/// Counts removed build directories and their measured size in bytes.
pub fn builds_removed(count: u64, bytes: u64) {
    BUILDS_REMOVED.fetch_add(count, Ordering::Relaxed);
    BUILD_BYTES_REMOVED.fetch_add(bytes, Ordering::Relaxed);
}

/// Sets the size of the build directories below `root`; `None` if they are not measured.
pub fn builds_measured(root: &Path, bytes: Option<u64>) {
    let mut all = sync::lock(&BUILD_BYTES);
    match bytes {
        Some(bytes) => all.insert(root.to_owned(), bytes),
        None => all.remove(root),
    };
}

static CACHE_VOLUMES_REMOVED: AtomicU64 = AtomicU64::new(0);
static CACHE_VOLUME_BYTES_REMOVED: AtomicU64 = AtomicU64::new(0);
/// Bytes of the cache volumes that are kept, by engine.
static CACHE_VOLUME_BYTES: Mutex<BTreeMap<String, u64>> = Mutex::new(BTreeMap::new());

/// Counts a removed cache volume and its bytes; 0 if it was not measured.
pub fn cache_volume_removed(bytes: u64) {
    CACHE_VOLUMES_REMOVED.fetch_add(1, Ordering::Relaxed);
    CACHE_VOLUME_BYTES_REMOVED.fetch_add(bytes, Ordering::Relaxed);
}

/// Records the bytes of an engine's cache volumes; `None` if they are not measured.
pub fn cache_volumes_measured(engine: &str, bytes: Option<u64>) {
    let mut all = sync::lock(&CACHE_VOLUME_BYTES);
    match bytes {
        Some(bytes) => all.insert(engine.to_owned(), bytes),
        None => all.remove(engine),
    };
}

/// Counts a removed image.
pub fn image_removed() {
    IMAGES_REMOVED.fetch_add(1, Ordering::Relaxed);
}

pub fn write(page: &mut Page) {
    NOTICES.write(page);
    REFUSALS.write(page);
    TOKENS_FETCHED.write(page);
    for (name, help, count) in [
        (
            "mayfly_builds_removed_total",
            "Build directories that were removed because of their limits.",
            &BUILDS_REMOVED,
        ),
        (
            "mayfly_builds_removed_bytes_total",
            "Bytes of removed build directories that were measured.",
            &BUILD_BYTES_REMOVED,
        ),
        ("mayfly_images_removed_total", "Pulled images that were removed because no job used them.", &IMAGES_REMOVED),
        (
            "mayfly_cache_volumes_removed_total",
            "Cache volumes of containers that were removed because of their limits.",
            &CACHE_VOLUMES_REMOVED,
        ),
        (
            "mayfly_cache_volumes_removed_bytes_total",
            "Bytes of removed cache volumes that were measured.",
            &CACHE_VOLUME_BYTES_REMOVED,
        ),
    ] {
        page.single(name, MetricKind::Counter, help, count.load(Ordering::Relaxed) as f64);
    }
    let help = "Bytes of build directories that finished jobs left, where `builds_max_size` limits them.";
    let mut bytes = page.metric("mayfly_builds_bytes", MetricKind::Gauge, help);
    for (root, size) in sync::lock(&BUILD_BYTES).iter() {
        bytes.sample(&[("path", &root.to_string_lossy())], *size as f64);
    }
    let help = "Bytes of the cache volumes of containers, where `cache_volumes_max_size` limits them.";
    let mut bytes = page.metric("mayfly_cache_volumes_bytes", MetricKind::Gauge, help);
    for (engine, size) in sync::lock(&CACHE_VOLUME_BYTES).iter() {
        bytes.sample(&[("engine", engine)], *size as f64);
    }
}

/// Writes the free space of directories, which are given with their purpose.
pub fn write_space<'a>(page: &mut Page, directories: impl Iterator<Item = (&'static str, &'a Path)>) {
    let known: Vec<_> =
        directories.filter_map(|(purpose, path)| Some((purpose, path.to_string_lossy(), space(path)?))).collect();
    type StatField = fn(&Statvfs) -> u64;
    let metrics: [(&'static str, &str, StatField); 4] = [
        ("mayfly_filesystem_avail_bytes", "Bytes available to unprivileged users, by directory.", |fs| {
            fs.blocks_available() * fs.fragment_size()
        }),
        ("mayfly_filesystem_size_bytes", "Size of the file system, by directory.", |fs| {
            fs.blocks() * fs.fragment_size()
        }),
        ("mayfly_filesystem_files_free", "Free inodes, by directory.", |fs| fs.files_available()),
        ("mayfly_filesystem_files", "Inodes of the file system, by directory; 0 if it has no fixed number.", |fs| {
            fs.files()
        }),
    ];
    for (name, help, value) in metrics {
        let mut metric = page.metric(name, MetricKind::Gauge, help);
        for (purpose, path, space) in &known {
            metric.sample(&[("directory", purpose), ("path", path)], value(space) as f64);
        }
    }
}

/// The file system of a directory, or of its nearest existing parent.
fn space(path: &Path) -> Option<Statvfs> {
    path.ancestors().find_map(|path| statvfs(path).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_all_label_values_with_zeros() {
        spot_notice("rebalance");
        spot_notice("something new");
        let mut page = Page::default();
        write(&mut page);
        let text = page.finish();
        for line in
            ["mayfly_spot_notices_total{notice=\"rebalance\"} 1", "mayfly_spot_notices_total{notice=\"stop\"} 0"]
        {
            assert!(text.lines().any(|other| other == line), "{line} in {text}");
        }
        assert!(!text.contains("something new"));
    }

    #[test]
    fn a_missing_directory_has_the_space_of_its_parent() {
        let directory = tempfile::tempdir().expect("a directory");
        let missing = directory.path().join("a/b");
        let mut page = Page::default();
        write_space(&mut page, [("builds", missing.as_path())].into_iter());
        let text = page.finish();
        let label = format!("{{directory=\"builds\",path=\"{}\"}} ", missing.display());
        let size =
            text.split(&format!("mayfly_filesystem_size_bytes{label}")).nth(1).and_then(|rest| rest.lines().next());
        let size: f64 = size.and_then(|size| size.parse().ok()).unwrap_or_else(|| panic!("{text}"));
        assert!(size > 0.0, "{text}");
    }
}
