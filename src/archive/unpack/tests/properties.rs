//! Unpacking is the inverse of packing, and no archive leads outside.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Leaf {
    File(Vec<u8>, u32),
    Link(String),
    Hollow,
}

fn leaves() -> impl Strategy<Value = Vec<(Vec<String>, Leaf)>> {
    let name = "[a-zA-Zäß語 .:*?\\[{-]{1,8}".prop_filter("a name", |name| name != "." && name != "..");
    let leaf = prop_oneof![
        (prop::collection::vec(any::<u8>(), 0..2000), 0o400_u32..0o1000).prop_map(|(c, mode)| Leaf::File(c, mode)),
        "[a-z./]{1,20}|[a-z/]{90,200}".prop_map(Leaf::Link),
        Just(Leaf::Hollow),
    ];
    prop::collection::vec((prop::collection::vec(name, 1..4), leaf), 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn unpacking_is_the_inverse_of_packing(
        leaves in leaves(),
        format in prop_oneof![Just(ArchiveFormat::Zip), Just(ArchiveFormat::ZipZstd), Just(ArchiveFormat::TarZstd)],
    ) {
        let project = Project::new();
        for (n, (names, leaf)) in leaves.iter().enumerate() {
            let path = project.path().join(names.join("/"));
            if fs::create_dir_all(path.parent().unwrap()).is_err() || path.symlink_metadata().is_ok() {
                continue;
            }
            match leaf {
                Leaf::File(content, mode) => {
                    fs::write(&path, content).unwrap();
                    fs::set_permissions(&path, fs::Permissions::from_mode(*mode)).unwrap();
                    project.mtime(&names.join("/"), 1_000_000_000 + n as u64 * 77);
                }
                Leaf::Link(target) => symlink(target, &path).unwrap(),
                Leaf::Hollow => fs::create_dir(&path).unwrap(),
            }
        }
        let archive = File::create(project.beside("a.zip")).unwrap();
        write(&project.root(), &project.entries(), format, CompressionLevel::Default, archive).unwrap();
        let copy = Project::new_with(&project, "a.zip");
        unpack_into(&copy, "a.zip").unwrap();
        assert_same(&copy.snapshot(), &snapshot(&project.path()), "copy");
    }

    #[test]
    fn random_bytes_are_an_error_and_never_a_panic(
        mut noise in prop::collection::vec(any::<u8>(), 0..3000),
        at in any::<prop::sample::Index>(),
    ) {
        let project = sample();
        let archive = File::create(project.beside("a.zip")).unwrap();
        write(&project.root(), &project.entries(), ArchiveFormat::Zip, CompressionLevel::Fastest, archive).unwrap();
        let mut bytes = fs::read(project.beside("a.zip")).unwrap();
        let start = at.index(bytes.len());
        let end = bytes.len().min(start + noise.len());
        noise.truncate(end - start);
        bytes[start..end].copy_from_slice(&noise);
        fs::write(project.beside("a.zip"), bytes).unwrap();
        let _ = unpack_into(&Project::new_with(&project, "a.zip"), "a.zip");
    }
}

/// An archive of a small project, as bytes to be modified; a tar archive without its compression.
fn packed(format: ArchiveFormat) -> Vec<u8> {
    let project = Project::new();
    project.write("a/file", b"content").write("a/other", &[b'x'; 3000]).link("link", "a/file").mode("a/file", 0o755);
    let mut entries = project.entries();
    if format == ArchiveFormat::Gzip {
        entries.retain(|entry| entry.kind == crate::archive::root::FileKind::File);
    }
    let mut bytes = Vec::new();
    write(&project.root(), &entries, format, CompressionLevel::Fast, &mut bytes).unwrap();
    if format == ArchiveFormat::TarZstd { zstd::decode_all(&bytes[..]).unwrap() } else { bytes }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_modified_archive_is_unpacked_inside_or_refused(
        format in prop_oneof![Just(ArchiveFormat::Zip), Just(ArchiveFormat::ZipZstd), Just(ArchiveFormat::TarZstd), Just(ArchiveFormat::Gzip)],
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..12),
        names in any::<bool>(),
        end in any::<proptest::sample::Index>(),
        is_cut in proptest::bool::weighted(0.2),
    ) {
        let mut bytes = packed(format);
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if names {
            // A path of the same length that leads outside.
            for at in 0..bytes.len().saturating_sub(6) {
                if &bytes[at..at + 6] == b"a/file" {
                    bytes[at..at + 6].copy_from_slice(b"../out");
                }
            }
        }
        if is_cut {
            bytes.truncate(end.index(bytes.len()));
        }
        if format == ArchiveFormat::TarZstd {
            bytes = zstd::encode_all(&bytes[..], 1).unwrap();
        }
        let project = Project::new();
        fs::write(project.beside("archive"), bytes).unwrap();
        let _ = unpack_into(&project, "archive");
        let beside: Vec<_> = fs::read_dir(project.beside("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        prop_assert_eq!(beside.len(), 2, "{:?}", beside);
    }
}
