//! The caches on this machine while several slots use them, and their limits.

use super::*;

#[test]
fn concurrent_slots_never_see_an_incomplete_archive() {
    let project = Project::new();
    fs::write(project.path().join("vendor/large"), vec![7; 2_000_000]).unwrap();
    thread::scope(|scope| {
        for n in 0..4 {
            let project = &project;
            scope.spawn(move || {
                for round in 0..5 {
                    fs::write(project.path().join(format!("vendor/{n}")), format!("{round}")).unwrap();
                    project.save("key", None, StorageLimits::default());
                    let archive = fs::File::open(project.archive("key")).unwrap();
                    let out = tempfile::tempdir().unwrap();
                    let root = crate::archive::root::ArchiveRoot::open(out.path()).unwrap();
                    crate::archive::unpack::unpack(&archive, &root).unwrap();
                }
            });
        }
    });
    let left: Vec<_> = fs::read_dir(project.store().join("key")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "{left:?}");
}

#[test]
fn enforces_the_limits_of_local_caches() {
    let project = Project::new();
    let mut noise = fs::File::create(project.path().join("vendor/noise")).unwrap();
    for n in 0..100_000_u64 {
        noise.write_all(&n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()).unwrap();
    }
    let used = |key: &str, seconds: u64| {
        let metadata = fs::File::options().write(true).open(project.store().join(key).join("metadata.json")).unwrap();
        metadata.set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
    };
    for (key, seconds) in [("a", 300), ("b", 200), ("c", 100)] {
        project.save(key, None, StorageLimits::default());
        used(key, seconds);
    }
    let size = fs::metadata(project.archive("a")).unwrap().len();
    project.save("d", None, StorageLimits { size: Some(size * 5 / 2), age: None });
    let there = |key: &str| project.archive(key).exists();
    assert_eq!(["a", "b", "c", "d"].map(there), [false, false, true, true]);
    project.save("d", None, StorageLimits { size: None, age: Some(Duration::from_secs(50)) });
    assert_eq!(["c", "d"].map(there), [false, true]);
    let left: Vec<_> = fs::read_dir(project.store()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["d"], "no directories without an archive");
}

#[test]
fn removes_temporary_files_of_killed_processes() {
    let project = Project::new();
    project.save("key", None, StorageLimits::default());
    let left = project.store().join("key/.draft-1-0000");
    fs::write(&left, "half").unwrap();
    project.save("key", None, StorageLimits::default());
    assert!(!left.exists());
}

#[test]
fn concurrent_saving_and_cleaning_keeps_archives_in_use() {
    let project = Project::new();
    let old = StorageLimits { size: None, age: Some(Duration::ZERO) };
    thread::scope(|scope| {
        scope.spawn(|| (0..60).for_each(|_| store::enforce_limits(&project.store(), old)));
        for n in 0..3 {
            let project = &project;
            scope.spawn(move || {
                for round in 0..20 {
                    fs::write(project.path().join(format!("vendor/{n}")), format!("{round}")).unwrap();
                    let key = format!("deep/key-{}", round % 2);
                    assert_eq!(project.save(&key, None, StorageLimits::default()), 0);
                }
            });
        }
    });
    project.save("deep/key-0", None, StorageLimits::default());
    assert!(project.archive("deep/key-0").exists());
}
