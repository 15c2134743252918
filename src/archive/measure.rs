//! What `bench/archive` runs: time and memory of packing and unpacking the tree in `BENCH_TREE`.

use std::env;
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::root::Root;
use super::select::{Request, select};
use super::unpack::unpack;
use super::{Format, Level, write};

#[test]
#[ignore = "needs a tree to work on"]
fn measure() {
    let tree = PathBuf::from(env::var_os("BENCH_TREE").expect("BENCH_TREE"));
    let work = tempfile::tempdir_in(tree.parent().unwrap()).unwrap();
    for (name, format, level) in [
        ("zip fast", Format::Zip, Level::Fast),
        ("zip default", Format::Zip, Level::Default),
        ("zip.zst default", Format::ZipZstd, Level::Default),
        ("tar.zst default", Format::TarZstd, Level::Default),
    ] {
        let packed = work.path().join("packed");
        let start = Instant::now();
        let root = Root::open(&tree).unwrap();
        let entries = select(&root, &Request { paths: vec!["**".to_owned()], ..Request::default() }).entries;
        let sink = BufWriter::with_capacity(256 * 1024, File::create(&packed).unwrap());
        let written = write(&root, &entries, format, level, sink).unwrap();
        tell(&format!("pack {name}"), start, written.bytes, &packed);
        let out = work.path().join("out");
        fs::create_dir(&out).unwrap();
        let start = Instant::now();
        unpack(&File::open(&packed).unwrap(), &Root::open(&out).unwrap()).unwrap();
        tell(&format!("unpack {name}"), start, written.bytes, &packed);
        fs::remove_dir_all(&out).unwrap();
    }
}

fn tell(what: &str, start: Instant, bytes: u64, packed: &Path) {
    let seconds = start.elapsed().as_secs_f64();
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default().trim().to_owned();
    let rate = bytes as f64 / seconds / 1e6;
    let size = fs::metadata(packed).unwrap().len() as f64 / 1e6;
    println!("{what:24} {seconds:7.2} s {rate:7.0} MB/s {size:8.1} MB peak {peak}");
}
