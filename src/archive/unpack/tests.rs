//! Tests of unpacking: no data is lost, nothing is written outside, unpacking ends for every archive.

mod limits;
mod properties;

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use rawzip::path::EntryPath;
use rawzip::{CompressionMethod, DataDescriptorOutput, ZipArchiveWriter};

use super::*;
use crate::archive::testing::{Project, assert_same, sample, snapshot, tool};
use crate::archive::{ArchiveFormat, CompressionLevel, write};

fn unpack_into(project: &Project, archive: &str) -> Result<Unpacked, UnpackError> {
    unpack(&File::open(project.beside(archive)).unwrap(), &project.root())
}

/// A malicious zip archive from names, modes and contents.
fn hostile_zip(project: &Project, entries: &[(&[u8], u32, &[u8])]) {
    let mut archive = ZipArchiveWriter::new(File::create(project.beside("a.zip")).unwrap());
    for (name, mode, content) in entries {
        let builder = archive.new_file(EntryPath::verbatim(name.to_vec())).unix_permissions(*mode);
        let (mut entry, _) = builder.start().unwrap();
        entry.write_all(content).unwrap();
        entry.finish(DataDescriptorOutput::new(crc32fast::hash(content), content.len() as u64)).unwrap();
    }
    archive.finish().unwrap();
}

/// A malicious tar+zstd archive from names, types, link targets and contents.
fn hostile_tar(project: &Project, entries: &[(&str, u8, &str, &[u8])]) {
    let mut out = zstd::Encoder::new(File::create(project.beside("a.tar.zst")).unwrap(), 1).unwrap();
    for (name, kind, target, content) in entries {
        let mut header = ::tar::Header::new_gnu();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.as_mut_bytes()[157..157 + target.len()].copy_from_slice(target.as_bytes());
        header.set_entry_type(::tar::EntryType::new(*kind));
        header.set_mode(0o6755);
        header.set_mtime(1_000_000_000);
        header.set_size(content.len() as u64);
        header.set_cksum();
        out.write_all(header.as_bytes()).unwrap();
        out.write_all(content).unwrap();
        out.write_all(&vec![0; (512 - content.len() % 512) % 512]).unwrap();
    }
    out.write_all(&[0; 1024]).unwrap();
    out.finish().unwrap();
}

#[test]
fn unpacks_what_was_packed() {
    let project = sample();
    let archive = File::create(project.beside("a.zip")).unwrap();
    write(&project.root(), &project.entries(), ArchiveFormat::Zip, CompressionLevel::Default, archive).unwrap();
    let before = project.snapshot();
    let copy = Project::new();
    fs::copy(project.beside("a.zip"), copy.beside("a.zip")).unwrap();
    for _ in 0..2 {
        let unpacked = unpack_into(&copy, "a.zip").unwrap();
        assert_eq!(unpacked.entries as usize, before.len());
        assert_eq!(*unpacked.warnings, Vec::<String>::new());
        assert_same(&copy.snapshot(), &before, "second time over the first");
    }
}

#[test]
fn unpacks_what_other_tools_pack() {
    for pack in [
        &["zip", "-qry", "../a.zip", "."][..],
        &["bsdtar", "--format", "zip", "-cf", "../a.zip", "."],
        &["tar", "--zstd", "--format=gnu", "-cf", "../a.zip", "."],
        &["tar", "--zstd", "--format=pax", "-cf", "../a.zip", "."],
        &["bsdtar", "--zstd", "-cf", "../a.zip", "."],
    ] {
        let project = sample();
        let long = format!("long/{}/{}", "d".repeat(120), "f".repeat(200));
        project.write(&long, b"long").link("long/link", &"t/".repeat(100));
        tool(Command::new(pack[0]).args(&pack[1..]).current_dir(project.path()));
        let copy = Project::new();
        fs::copy(project.beside("a.zip"), copy.beside("a.zip")).unwrap();
        unpack_into(&copy, "a.zip").unwrap();
        assert_same(&copy.snapshot(), &project.snapshot(), &pack.join(" "));
    }
}

#[test]
fn gzip_members_become_files() {
    let project = Project::new();
    let mut out = File::create(project.beside("a.gz")).unwrap();
    for (name, comment, content) in [("a.xml", "reports/a.xml", "A"), ("b.xml", "e:r%C3%A9/b%25.xml", "B")] {
        let builder = flate2::GzBuilder::new().filename(name).comment(comment).mtime(1_000_000_000);
        let mut member = builder.write(&mut out, flate2::Compression::default());
        member.write_all(content.as_bytes()).unwrap();
        member.finish().unwrap();
    }
    assert_eq!(unpack_into(&project, "a.gz").unwrap().entries, 2);
    assert_eq!(fs::read(project.path().join("reports/a.xml")).unwrap(), b"A");
    assert_eq!(fs::read(project.path().join("ré/b%.xml")).unwrap(), b"B");
}

#[test]
fn a_name_that_leads_out_is_an_error() {
    for name in ["../evil", "/tmp/evil", "a/../../evil", "..", "a/.."] {
        let project = Project::new();
        hostile_zip(&project, &[(name.as_bytes(), 0o100_644, b"x")]);
        let error = unpack_into(&project, "a.zip").unwrap_err();
        assert_eq!(error.entry.as_deref(), Some(name));
        hostile_tar(&project, &[(name, b'0', "", b"x")]);
        let error = unpack_into(&project, "a.tar.zst").unwrap_err();
        assert_eq!(error.entry.as_deref(), Some(name));
        assert!(!project.beside("evil").exists());
    }
}

#[test]
fn writes_nothing_through_a_link_out() {
    let project = Project::new();
    let outside = project.beside("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), "untouched").unwrap();
    symlink(&outside, project.path().join("planted")).unwrap();
    symlink(outside.join("file"), project.path().join("file")).unwrap();

    hostile_zip(&project, &[(b"planted/file", 0o100_644, b"evil")]);
    let error = unpack_into(&project, "a.zip").unwrap_err();
    assert_eq!(error.to_string(), "planted/file: a link leads out of the project directory");

    hostile_tar(&project, &[("planted/file", b'0', "", b"evil")]);
    assert!(unpack_into(&project, "a.tar.zst").is_err());

    // A link in the archive, used by a later entry of the same archive.
    let target = outside.to_str().unwrap();
    hostile_zip(&project, &[(b"own", 0o120_777, target.as_bytes()), (b"own/file", 0o100_644, b"evil")]);
    assert!(unpack_into(&project, "a.zip").is_err());

    // The last part of the path is replaced, not followed.
    hostile_zip(&project, &[(b"file", 0o100_644, b"new")]);
    unpack_into(&project, "a.zip").unwrap();
    assert_eq!(fs::read(project.path().join("file")).unwrap(), b"new");
    assert_eq!(fs::read(outside.join("file")).unwrap(), b"untouched");
}

#[test]
fn writes_nothing_through_a_hard_link_to_the_outside() {
    let project = Project::new();
    fs::write(project.beside("victim"), "untouched").unwrap();
    fs::hard_link(project.beside("victim"), project.path().join("file")).unwrap();
    hostile_zip(&project, &[(b"file", 0o100_644, b"new")]);
    unpack_into(&project, "a.zip").unwrap();
    assert_eq!(fs::read(project.beside("victim")).unwrap(), b"untouched");

    symlink("../victim", project.path().join("link")).unwrap();
    for target in ["../victim", "/etc/passwd", "link"] {
        hostile_tar(&project, &[("hard", b'1', target, b"")]);
        assert!(unpack_into(&project, "a.tar.zst").is_err(), "{target}");
    }
    hostile_tar(&project, &[("one", b'0', "", b"content"), ("two", b'1', "one", b"")]);
    unpack_into(&project, "a.tar.zst").unwrap();
    assert_eq!(fs::read(project.path().join("two")).unwrap(), b"content");
}

#[test]
fn skips_devices_and_drops_set_user_id() {
    let project = Project::new();
    hostile_tar(&project, &[("null", b'3', "", b""), ("pipe", b'6', "", b""), ("tool", b'0', "", b"x")]);
    let unpacked = unpack_into(&project, "a.tar.zst").unwrap();
    assert_eq!(unpacked.warnings.len(), 2);
    assert_eq!(project.snapshot().len(), 1);
    assert_eq!(fs::metadata(project.path().join("tool")).unwrap().permissions().mode() & 0o7777, 0o755);

    hostile_zip(&project, &[(b"dev", 0o020_666, b""), (b"suid", 0o104_755, b"x")]);
    assert_eq!(unpack_into(&project, "a.zip").unwrap().warnings.len(), 1);
    assert_eq!(fs::metadata(project.path().join("suid")).unwrap().permissions().mode() & 0o7777, 0o755);
}

#[test]
fn of_duplicate_names_the_last_one_wins() {
    let project = Project::new();
    let contents: Vec<Vec<u8>> = (0..40).map(|n| format!("{n}").into_bytes()).collect();
    let entries: Vec<(&[u8], u32, &[u8])> = contents.iter().map(|c| (&b"same"[..], 0o100_644, c.as_slice())).collect();
    hostile_zip(&project, &entries);
    unpack_into(&project, "a.zip").unwrap();
    assert_eq!(fs::read(project.path().join("same")).unwrap(), b"39");
}

#[test]
fn a_file_in_the_place_of_a_directory_is_an_error_with_its_name() {
    let project = Project::new();
    project.write("d/inside", b"x");
    hostile_zip(&project, &[(b"d", 0o100_644, b"x")]);
    assert_eq!(unpack_into(&project, "a.zip").unwrap_err().to_string(), "d: a directory with that name exists");
    hostile_zip(&project, &[(b"d/inside/more", 0o100_644, b"x")]);
    assert_eq!(unpack_into(&project, "a.zip").unwrap_err().entry.as_deref(), Some("d/inside/more"));
}

#[test]
fn names_the_damaged_entry() {
    let project = sample();
    let archive = File::create(project.beside("a.zip")).unwrap();
    write(&project.root(), &project.entries(), ArchiveFormat::Zip, CompressionLevel::Default, archive).unwrap();
    let whole = fs::read(project.beside("a.zip")).unwrap();

    // A flipped bit in the middle of the large file.
    let mut broken = whole.clone();
    let middle = broken.len() / 2;
    broken[middle] ^= 0x10;
    fs::write(project.beside("b.zip"), broken).unwrap();
    let error = unpack_into(&Project::new_with(&project, "b.zip"), "b.zip").unwrap_err();
    assert_eq!(error.entry.as_deref(), Some("deep/er/and deeper/large.txt"));
    assert_eq!(error.fault, UnpackFault::Archive);

    // Truncated, empty, or another format.
    for content in [&whole[..whole.len() / 2], &b""[..], &b"<html>no</html>"[..], &b"PK\x03\x04"[..]] {
        fs::write(project.beside("b.zip"), content).unwrap();
        assert!(unpack_into(&Project::new_with(&project, "b.zip"), "b.zip").is_err());
    }
}

#[test]
fn errors_of_the_destination_do_not_blame_the_archive() {
    let project = Project::new();
    project.write("d/inside", b"x");
    hostile_zip(&project, &[(b"d", 0o100_644, b"x")]);
    assert_eq!(unpack_into(&project, "a.zip").unwrap_err().fault, UnpackFault::Destination);
    hostile_zip(&project, &[(b"../d", 0o100_644, b"x")]);
    assert_eq!(unpack_into(&project, "a.zip").unwrap_err().fault, UnpackFault::Archive);
}

#[test]
fn creates_files_in_a_directory_without_write_permission() {
    let project = Project::new();
    project.write("locked/file", b"x").mode("locked", 0o555);
    let archive = File::create(project.beside("a.zip")).unwrap();
    write(&project.root(), &project.entries(), ArchiveFormat::Zip, CompressionLevel::Default, archive).unwrap();
    let copy = Project::new_with(&project, "a.zip");
    unpack_into(&copy, "a.zip").unwrap();
    assert_same(&copy.snapshot(), &project.snapshot(), "modes");
    assert_eq!(fs::metadata(copy.path().join("locked")).unwrap().mode() & 0o777, 0o555);
}

#[test]
fn preserves_fractions_of_seconds_for_the_agent_and_other_tools() {
    let time = 1_234_567_890_123_456_700;
    let time_of = |path: &Path| {
        let metadata = fs::metadata(path).unwrap();
        metadata.mtime() * 1_000_000_000 + metadata.mtime_nsec()
    };
    for (format, name) in
        [(ArchiveFormat::Zip, "a.zip"), (ArchiveFormat::ZipZstd, "a.zip"), (ArchiveFormat::TarZstd, "a.tar.zst")]
    {
        let project = Project::new();
        project.write("small", b"x").write("large", &[b'x'; 3_000_000]).write("directory/file", b"y");
        let names = ["small", "large", "directory", "directory/file"];
        for name in names.iter().rev() {
            project.mtime_nanoseconds(name, time);
        }
        project.link("link", "small").link_mtime_nanoseconds("link", time);
        let archive = File::create(project.beside(name)).unwrap();
        write(&project.root(), &project.entries(), format, CompressionLevel::Default, archive).unwrap();
        let copy = Project::new_with(&project, name);
        unpack(&File::open(copy.beside(name)).unwrap(), &copy.root()).unwrap();
        for name in names {
            assert_eq!(time_of(&copy.path().join(name)), time as i64, "{format:?} {name}");
        }
        let link = copy.path().join("link").symlink_metadata().unwrap();
        assert_eq!(link.mtime() * 1_000_000_000 + link.mtime_nsec(), time as i64, "{format:?} link");
        let out = project.beside("by bsdtar");
        fs::create_dir(&out).unwrap();
        tool(Command::new("bsdtar").arg("-xpf").arg(project.beside(name)).current_dir(&out));
        for name in names {
            // Tools that ignore the fraction in zip archives must still read the seconds.
            let expected = if format == ArchiveFormat::TarZstd { time as i64 } else { 1_234_567_890_000_000_000 };
            assert!(time_of(&out.join(name)) >= expected, "{format:?} {name}");
        }
    }
}

#[test]
fn ignores_a_time_that_is_not_a_number() {
    for (text, time) in [
        ("1.5", Some((1, 500_000_000))),
        ("7", Some((7, 0))),
        ("1.1234567899", Some((1, 123_456_789))),
        ("-1.5", None),
        ("1.-5", None),
        ("99999999999999999999", None),
        ("soon", None),
    ] {
        let parsed = super::tar::parse_time(text).map(|time| (time.tv_sec(), time.tv_nsec()));
        assert_eq!(parsed, time, "{text}");
    }
}
