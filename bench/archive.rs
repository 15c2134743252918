//! Compares packing and unpacking with `zip`, `pigz`, and `tar` with `zstd`: `cargo bench --bench archive`.
//!
//! The trees are 200 MB of mixed files, and 20,000 small files. The tools run in turn in each round; the median is
//! printed. With `GITLAB_RUNNER=/path/to/gitlab-runner`, its archiver runs in the same rounds. Arguments select
//! measurements by name (`-- mixed zip`); `BENCH_PLACE` is the working directory.

#[allow(dead_code, unused_imports, reason = "the agent uses the rest")]
#[path = "../src/archive/mod.rs"]
mod archive;
#[allow(dead_code, reason = "the agent uses the rest")]
#[path = "../src/sync.rs"]
mod sync;

use std::fs::{self, File};
use std::io::BufWriter;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

use archive::root::ArchiveRoot;
use archive::select::{SelectionRequest, select};
use archive::unpack::unpack;
use archive::{ArchiveFormat, CompressionLevel};

/// The number of rounds; the median is printed.
const ROUNDS: usize = 3;
/// The first argument of this program when it is started as the packer under test.
const AS_PACKER: &str = "as-packer";

/// The tools: name, shell command that packs the current directory, shell command that unpacks into the current
/// directory. `$FILE` is the archive, `$SELF` is this program.
const TOOLS: [(&str, &str, &str); 10] = [
    ("zip", "zip -qr $FILE .", "unzip -q $FILE"),
    ("tar", "tar cf $FILE .", "tar xf $FILE"),
    ("tar | pigz", "tar c . | pigz >$FILE", "pigz -dc $FILE | tar x"),
    ("tar | zstd", "tar c . | zstd -q >$FILE", "zstd -qdc $FILE | tar x"),
    ("tar | zstd -T0", "tar c . | zstd -q -T0 >$FILE", "zstd -qdc $FILE | tar x"),
    ("mayfly zip, fastest", "$SELF as-packer zip fastest $FILE", "$SELF as-packer unpack - $FILE"),
    ("mayfly zip, fast", "$SELF as-packer zip fast $FILE", "$SELF as-packer unpack - $FILE"),
    ("mayfly zip", "$SELF as-packer zip default $FILE", "$SELF as-packer unpack - $FILE"),
    ("mayfly zip with zstd", "$SELF as-packer zipzstd default $FILE", "$SELF as-packer unpack - $FILE"),
    ("mayfly tar.zst", "$SELF as-packer tarzstd default $FILE", "$SELF as-packer unpack - $FILE"),
];

/// The trees: name, and the function that creates it.
const TREES: [(&str, MakeTree); 2] = [("mixed", mixed), ("small", small)];

/// Creates a tree with the same content in every run.
type MakeTree = fn(&Path);

/// The commands for gitlab-runner.
const OTHER: (&str, &str, &str) = (
    "gitlab-runner zip",
    "$GITLAB_RUNNER cache-archiver --path . --file $FILE >/dev/null 2>&1",
    "$GITLAB_RUNNER cache-extractor --file $FILE >/dev/null 2>&1",
);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    if let [first, what, level, file] = &arguments[..]
        && first == AS_PACKER
    {
        return as_packer(what, level, Path::new(file));
    }
    let place = std::env::var_os("BENCH_PLACE").map_or_else(std::env::temp_dir, PathBuf::from);
    let place = tempfile::tempdir_in(place).expect("a directory");
    let mut tools = TOOLS.to_vec();
    tools.extend(std::env::var_os("GITLAB_RUNNER").map(|_| OTHER));
    let (trees, words): (Vec<_>, Vec<_>) =
        arguments.iter().partition(|word| TREES.iter().any(|(name, _)| name == word));
    tools.retain(|(tool, ..)| words.is_empty() || words.iter().any(|word| tool.contains(word.as_str())));
    for (name, make) in TREES {
        if trees.is_empty() || trees.iter().any(|chosen| *chosen == name) {
            let tree = place.path().join(name);
            make(&tree);
            compare(name, &tree, place.path(), &tools);
            fs::remove_dir_all(tree).expect("remove the directory");
        }
    }
}

/// Runs the tools in turn, so that the load of the machine affects all of them.
fn compare(name: &str, tree: &Path, place: &Path, tools: &[(&str, &str, &str)]) {
    let (files, bytes) = count(tree);
    println!("-- {name}: {files} files, {:.0} MB; load {}", bytes as f64 / 1e6, load());
    let heads = ["pack", "MB/s", "of CPU", "of RSS", "archive", "unpack", "of CPU", "of RSS"];
    println!("{:<24} {}", "", heads.map(|head| format!("{head:>9}")).join(" "));
    let mut rounds: Vec<Vec<(Ran, Ran, u64)>> = vec![Vec::new(); tools.len()];
    for _ in 0..ROUNDS {
        for ((_, pack, unpack), told) in tools.iter().zip(&mut rounds) {
            let (file, out) = (place.join("packed.zip"), place.join("unpacked"));
            fs::create_dir(&out).expect("create the directory");
            let packing = run(pack, &file, tree);
            let size = fs::metadata(&file).expect("an archive").len();
            let unpacking = run(unpack, &file, &out);
            assert_eq!(count(&out), (files, bytes), "{pack}");
            fs::remove_dir_all(out).expect("remove the directory");
            fs::remove_file(file).expect("remove the file");
            told.push((packing, unpacking, size));
        }
    }
    for ((tool, ..), told) in tools.iter().zip(rounds) {
        let size = told[0].2;
        let (packing, unpacking): (Vec<_>, Vec<_>) =
            told.into_iter().map(|(packing, unpacking, _)| (packing, unpacking)).unzip();
        let rate = bytes as f64 / median(&packing, |ran| ran.time).as_secs_f64() / 1e6;
        let [pack, pack_cpu, pack_peak] = columns(&packing);
        let [unpack, unpack_cpu, unpack_peak] = columns(&unpacking);
        let size = format!("{:.1} MB", size as f64 / 1e6);
        println!(
            "{tool:<24} {pack:>9} {rate:>9.0} {pack_cpu:>9} {pack_peak:>9} {size:>9} {unpack:>9} {unpack_cpu:>9} {unpack_peak:>9}"
        );
    }
}

/// Formats time, processor time and memory.
fn columns(runs: &[Ran]) -> [String; 3] {
    let peak = runs.iter().filter_map(|ran| ran.peak).max();
    [
        format!("{} ms", median(runs, |ran| ran.time).as_millis()),
        format!("{} ms", median(runs, |ran| ran.processor).as_millis()),
        peak.map_or("-".to_owned(), |peak| format!("{:.1} MiB", peak as f64 / 1024.0)),
    ]
}

/// The resources that one run of a tool used.
#[derive(Clone)]
struct Ran {
    time: Duration,
    /// Processor time of all cores. On a machine with other load it is a better measure than the elapsed time.
    processor: Duration,
    /// Peak memory in KiB; only known for this program.
    peak: Option<u64>,
}

fn run(script: &str, file: &Path, directory: &Path) -> Ran {
    let (began, before) = (Instant::now(), processor_time());
    let output = Command::new("sh")
        .args(["-c", script])
        .current_dir(directory)
        .env("FILE", file)
        .env("SELF", std::env::current_exe().expect("this program"))
        .stderr(Stdio::inherit())
        .output()
        .expect("run sh");
    let time = began.elapsed();
    assert!(output.status.success(), "{script}");
    let processor = processor_time() - before;
    Ran { time, processor, peak: String::from_utf8_lossy(&output.stdout).trim().parse().ok() }
}

/// Packs or unpacks the current directory with the agent's code, and prints the peak memory.
fn as_packer(what: &str, level: &str, file: &Path) {
    let root = ArchiveRoot::open(&std::env::current_dir().expect("a directory")).expect("open the directory");
    let format = match what {
        "zip" => Some(ArchiveFormat::Zip),
        "zipzstd" => Some(ArchiveFormat::ZipZstd),
        "tarzstd" => Some(ArchiveFormat::TarZstd),
        _ => None,
    };
    match format {
        Some(format) => {
            let entries =
                select(&root, &SelectionRequest { paths: vec!["**".to_owned()], ..SelectionRequest::default() })
                    .entries;
            let sink = BufWriter::with_capacity(256 * 1024, File::create(file).expect("create the file"));
            archive::write(&root, &entries, format, CompressionLevel::parse(level).expect("a level"), sink)
                .expect("write the archive");
        }
        None => drop(unpack(&File::open(file).expect("open the file"), &root).expect("unpack the archive")),
    }
    let status = fs::read_to_string("/proc/self/status").expect("read the file");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    println!("{}", peak.trim().trim_end_matches(" kB"));
}

/// 200 MB of files as a build creates them: sources, logs, compressed files, and programs.
fn mixed(tree: &Path) {
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    for n in 0..1200 {
        let size = 10_000 + dice.below(80_000);
        write(tree, &format!("src/{}/file-{n}.txt", n / 40), &prose(&mut dice, size));
    }
    for n in 0..8 {
        write(tree, &format!("logs/{n}.log"), &log(&mut dice, 10_000_000));
    }
    for n in 0..600 {
        write(tree, &format!("assets/{}/{n}.jpg", n / 50), &dice.noise(50_000));
    }
    for (n, piece) in programs(30_000_000).chunks(1_500_000).enumerate() {
        write(tree, &format!("bin/program-{n}"), piece);
        let executable = fs::Permissions::from_mode(0o755);
        fs::set_permissions(tree.join(format!("bin/program-{n}")), executable).expect("set the permissions");
    }
}

/// 20,000 files of a few hundred bytes.
fn small(tree: &Path) {
    let mut dice = Dice(0x2545_f491_4f6c_dd1d);
    for n in 0..20_000 {
        let size = 100 + dice.below(800);
        write(tree, &format!("modules/{}/index-{n}.js", n / 100), &prose(&mut dice, size));
    }
}

fn write(tree: &Path, name: &str, content: &[u8]) {
    let path = tree.join(name);
    fs::create_dir_all(path.parent().expect("a directory")).expect("create the directory");
    fs::write(path, content).expect("write the file");
}

/// Text with the word frequencies of a natural language.
fn prose(dice: &mut Dice, size: usize) -> Vec<u8> {
    let mut text = Vec::with_capacity(size + 32);
    while text.len() < size {
        // A word with a smaller number is more frequent.
        let rank = 1 + dice.below(6000);
        let word = dice.below(rank);
        let mut letters = Dice(word as u64 + 1);
        for _ in 0..2 + letters.below(8) {
            text.push(b'a' + letters.below(26) as u8);
        }
        text.push(if dice.below(12) == 0 { b'\n' } else { b' ' });
    }
    text.truncate(size);
    text
}

fn log(dice: &mut Dice, size: usize) -> Vec<u8> {
    let mut text = Vec::with_capacity(size + 256);
    for second in 0.. {
        let (hour, minute) = (second / 3600 % 24, second / 60 % 60);
        let line = format!(
            "2026-01-01T{hour:02}:{minute:02}:{:02}Z level=info msg=\"request done\" path=/api/v4/jobs/{} status=200 took={}ms\n",
            second % 60,
            dice.below(1_000_000),
            dice.below(900),
        );
        text.extend_from_slice(line.as_bytes());
        if text.len() >= size {
            break;
        }
    }
    text.truncate(size);
    text
}

/// Machine code of this platform.
fn programs(size: usize) -> Vec<u8> {
    let mut found = Vec::new();
    let mut names: Vec<_> =
        fs::read_dir("/usr/bin").expect("list the directory").flatten().map(|entry| entry.path()).collect();
    names.sort();
    for name in names {
        found.extend(fs::read(name).ok().filter(|content| content.starts_with(b"\x7fELF")).unwrap_or_default());
        if found.len() >= size {
            break;
        }
    }
    found.truncate(size);
    found
}

/// Pseudo-random numbers, the same in every run.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, most: usize) -> usize {
        (self.next() >> 33) as usize % most.max(1)
    }

    fn noise(&mut self, size: usize) -> Vec<u8> {
        std::iter::repeat_with(|| self.next().to_le_bytes()).flatten().take(size).collect()
    }
}

/// The number of regular files below a directory, and their total size.
fn count(directory: &Path) -> (usize, u64) {
    fs::read_dir(directory).expect("list the directory").flatten().fold((0, 0), |(files, bytes), entry| {
        let metadata = entry.metadata().expect("the file must exist");
        let (more, size) = if metadata.is_dir() { count(&entry.path()) } else { (1, metadata.len()) };
        (files + more, bytes + size)
    })
}

fn load() -> String {
    fs::read_to_string("/proc/loadavg").unwrap_or_default().split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// The processor time of all ended child processes.
fn processor_time() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("read the resource usage");
    let spent = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Duration::from_micros(spent.unsigned_abs())
}

fn median(runs: &[Ran], of: impl Fn(&Ran) -> Duration) -> Duration {
    let mut times: Vec<Duration> = runs.iter().map(of).collect();
    times.sort_unstable();
    times[times.len() / 2]
}
