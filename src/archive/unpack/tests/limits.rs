//! Archives that would fill the disk or the memory.

use super::*;

#[test]
fn refuses_an_entry_longer_than_its_declared_size() {
    let project = Project::new();
    let mut archive = ZipArchiveWriter::new(File::create(project.beside("a.zip")).unwrap());
    let (mut entry, _) = archive.new_file("bomb").compression_method(CompressionMethod::DEFLATE).start().unwrap();
    let mut encoder = flate2::write::DeflateEncoder::new(&mut entry, flate2::Compression::best());
    encoder.write_all(&vec![0; 10_000_000]).unwrap();
    encoder.finish().unwrap();
    entry.finish(DataDescriptorOutput::new(0, 10)).unwrap();
    archive.finish().unwrap();
    assert_eq!(unpack_into(&project, "a.zip").unwrap_err().entry.as_deref(), Some("bomb"));
    assert!(!project.path().join("bomb").exists(), "half a file is worse than none");
}

/// A small file system; unmounted when the test ends.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mount(destination: std::path::PathBuf) -> Self {
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=4m", "none"]).arg(&destination).output();
        assert!(mounted.is_ok_and(|output| output.status.success()), "this test needs root");
        Self(destination)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // The lazy unmount does not fail while a process that another test forks still has our descriptors open.
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

#[test]
fn a_bomb_does_not_fill_the_disk() {
    let project = Project::new();
    let _small = SmallDisk::mount(project.path());
    let zeros = vec![0; 30_000_000];
    let source = Project::new();
    source.write("zeros", &zeros);
    let archive = File::create(project.beside("a.zip")).unwrap();
    write(&source.root(), &source.entries(), ArchiveFormat::Zip, CompressionLevel::Default, archive).unwrap();
    hostile_tar(&project, &[("zeros", b'0', "", &zeros)]);
    let mut out = flate2::GzBuilder::new()
        .filename("zeros")
        .write(File::create(project.beside("a.gz")).unwrap(), flate2::Compression::best());
    out.write_all(&zeros).unwrap();
    out.finish().unwrap();
    for archive in ["a.zip", "a.tar.zst", "a.gz"] {
        let error = unpack_into(&project, archive).unwrap_err();
        assert_eq!(error.entry.as_deref(), Some("zeros"));
        assert!(error.why.contains("free on the disk") && error.fault == UnpackFault::Destination, "{error}");
        assert_eq!(fs::read_dir(project.path()).unwrap().count(), 0);
    }
}

#[test]
fn endless_names_do_not_exhaust_memory() {
    let project = Project::new();
    let endless = vec![b'n'; 6 << 20];
    for kind in [b'L', b'K', b'x'] {
        hostile_tar(&project, &[("first", b'0', "", b"x"), ("long", kind, "", &endless), ("last", b'0', "", b"x")]);
        let error = unpack_into(&project, "a.tar.zst").unwrap_err();
        assert!(error.why.contains("after first") && error.why.contains("too long"), "{error}");
        assert_eq!(error.fault, UnpackFault::Archive);
    }
    // The name of a skipped entry may have any length.
    hostile_tar(&project, &[("device", b'3', "", &endless), ("last", b'0', "", b"x")]);
    assert_eq!(unpack_into(&project, "a.tar.zst").unwrap().entries, 1);
}

/// A tar+zstd archive of links, each with a GNU header for a target of any length.
fn tar_of_links(project: &Project, count: usize, target: &[u8]) {
    let mut out = zstd::Encoder::new(File::create(project.beside("a.tar.zst")).unwrap(), 1).unwrap();
    let header = |kind: u8, name: &str, size: u64| {
        let mut header = ::tar::Header::new_gnu();
        header.set_path(name).unwrap();
        header.set_entry_type(::tar::EntryType::new(kind));
        header.set_mode(0o644);
        header.set_mtime(1);
        header.set_size(size);
        header.set_cksum();
        header
    };
    for n in 0..count {
        out.write_all(header(b'K', "././@LongLink", target.len() as u64).as_bytes()).unwrap();
        out.write_all(target).unwrap();
        out.write_all(&vec![0; (512 - target.len() % 512) % 512]).unwrap();
        out.write_all(header(b'2', &format!("link{n}"), 0).as_bytes()).unwrap();
    }
    out.write_all(&[0; 1024]).unwrap();
    out.finish().unwrap();
}

#[test]
fn limits_the_length_of_link_targets() {
    let project = Project::new();
    tar_of_links(&project, 3, &vec![b'x'; 3_900_000]);
    let why = unpack_into(&project, "a.tar.zst").unwrap_err();
    assert_eq!((why.fault, why.to_string()), (UnpackFault::Archive, "link0: its target is not a valid path".into()));
}

#[test]
fn limits_the_memory_for_links() {
    let project = Project::new();
    tar_of_links(&project, 35_000, &[b'x'; 4000]);
    let why = unpack_into(&project, "a.tar.zst").unwrap_err();
    assert!(why.to_string().contains("too many links and directories"), "{why}");
    assert!(fs::read_dir(project.path()).unwrap().next().is_none(), "no link was made yet");
}

#[test]
fn counts_warnings_beyond_the_limit() {
    let project = Project::new();
    let pipes: Vec<(&str, u8, &str, &[u8])> = vec![("pipe", b'6', "", b""); 20_000];
    hostile_tar(&project, &pipes);
    let unpacked = unpack_into(&project, "a.tar.zst").unwrap();
    assert_eq!(unpacked.warnings.len(), 101);
    assert_eq!(unpacked.warnings[100], "19900 more warnings are not shown");
}
