//! The packages as built for users: their content, and their effect on a machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use ring::digest::{SHA256, digest};
use serde_json::Value;

use crate::support::docker::docker;
use crate::support::machine::{build_packages, with_image};

/// The files that every kind of package installs.
const FILES: [&str; 17] = [
    "etc/mayfly/config.toml",
    "usr/bin/mayfly",
    "usr/lib/systemd/system/mayfly.service",
    "usr/lib/systemd/system/mayfly-manager.service",
    "usr/lib/sysusers.d/mayfly.conf",
    "usr/lib/tmpfiles.d/mayfly.conf",
    "usr/share/bash-completion/completions/mayfly",
    "usr/share/doc/mayfly/docs/reference/configuration.md",
    "usr/share/doc/mayfly/cloud-init/token.yaml",
    "usr/share/doc/mayfly/docs/fleet/engines/local.sh",
    "usr/share/doc/mayfly/docs/fleet/one-job.yaml",
    "usr/share/mayfly/sysusers-slots.conf",
    "usr/share/mayfly/tmpfiles-slots.conf",
    "usr/share/fish/vendor_completions.d/mayfly.fish",
    "usr/share/man/man1/mayfly.1.gz",
    "usr/share/man/man1/mayfly-run.1.gz",
    "usr/share/man/man1/mayfly-register.1.gz",
];

/// The output of a shell command, which must succeed.
fn output_of(script: &str, file: &Path) -> String {
    let output =
        Command::new("bash").args(["-euo", "pipefail", "-c", script, "bash"]).arg(file).output().expect("run bash");
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn assert_holds_everything(listing: &str, what: &Path) {
    for file in FILES {
        let there = listing.lines().any(|line| line.ends_with(&format!("/{file}")));
        assert!(there, "{file} is not in {}:\n{listing}", what.display());
    }
}

#[test]
fn every_package_contains_all_files() {
    let directory = tempfile::tempdir().expect("a directory");
    let packages = build_packages(directory.path(), "deb rpm tarball oci");
    let [deb, rpm, tarball, oci] = &packages[..] else { panic!("{packages:?}") };

    let listing = output_of("dpkg-deb --fsys-tarfile \"$1\" | tar -tv", deb);
    assert_holds_everything(&listing, deb);
    let private = |line: &&str| line.starts_with("-rw------- root/root") && line.ends_with("./etc/mayfly/config.toml");
    assert!(listing.lines().any(|line| private(&line)), "tokens are to be kept from others:\n{listing}");
    assert_eq!(output_of("dpkg-deb --info \"$1\" conffiles", deb), "/etc/mayfly/config.toml\n");
    // nftables blocks access to the instance metadata, and the shipped user data enables that.
    assert!(output_of("dpkg-deb --field \"$1\" Depends", deb).contains("nftables"));

    assert_holds_everything(&output_of("rpm -qpl \"$1\"", rpm), rpm);
    assert_eq!(output_of("rpm -qpc \"$1\"", rpm), "/etc/mayfly/config.toml\n");
    assert!(output_of("rpm -qp --requires \"$1\"", rpm).lines().any(|package| package == "nftables"));
    assert!(output_of("rpm -qplv \"$1\"", rpm).contains("-rw-------"), "tokens are to be kept from others");

    assert_holds_everything(&output_of("tar -tzf \"$1\"", tarball), tarball);
    assert_image_is_whole(oci, directory.path());
}

/// Checks an OCI image from its index to the program in it.
fn assert_image_is_whole(image: &Path, directory: &Path) {
    let layout = directory.join("layout");
    fs::create_dir(&layout).expect("create the directory");
    output_of(&format!("tar -C {} -xf \"$1\"", layout.display()), image);
    let json =
        |path: &Path| -> Value { serde_json::from_slice(&fs::read(path).expect("a file")).expect("must be JSON") };
    // Each blob has the digest and the size of its descriptor.
    let blob = |descriptor: &Value| -> PathBuf {
        let name = descriptor["digest"].as_str().and_then(|digest| digest.strip_prefix("sha256:")).expect("a digest");
        let path = layout.join("blobs/sha256").join(name);
        let content = fs::read(&path).expect("a blob");
        assert_eq!(hex(&content), name);
        assert_eq!(descriptor["size"], content.len());
        path
    };
    assert_eq!(json(&layout.join("oci-layout"))["imageLayoutVersion"], "1.0.0");
    let index = json(&layout.join("index.json"));
    let manifest = json(&blob(&index["manifests"][0]));
    let config = json(&blob(&manifest["config"]));
    let layer = blob(&manifest["layers"][0]);
    assert_eq!(config["config"]["Entrypoint"][0], "/usr/bin/mayfly");
    let unpacked = Command::new("gzip").arg("-dc").arg(&layer).output().expect("run gzip").stdout;
    assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{}", hex(&unpacked)));
    let root = directory.join("root");
    fs::create_dir(&root).expect("create the directory");
    output_of(&format!("tar -C {} -xzf \"$1\"", root.display()), &layer);
    let version = Command::new(root.join("usr/bin/mayfly")).arg("--version").output().expect("the program");
    assert!(String::from_utf8_lossy(&version.stdout).contains(env!("CARGO_PKG_VERSION")));

    // `docker load` also accepts this layout.
    let name = concat!("mayfly:", env!("CARGO_PKG_VERSION"));
    docker().run(&["load", "--input", &image.display().to_string()]);
    let entry = docker().run(&["image", "inspect", "--format", "{{.Config.Entrypoint}} {{.Config.Cmd}}", name]);
    assert_eq!(entry.trim(), "[/usr/bin/mayfly] [run]");
}

fn hex(content: &[u8]) -> String {
    digest(&SHA256, content).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn packages_install_upgrade_and_remove_cleanly() {
    with_image("true", |image| {
        let enabled = "/etc/systemd/system/multi-user.target.wants/mayfly.service";
        let facts = "getent passwd mayfly-job; stat -c '%U %a' /var/lib/mayfly /var/cache/mayfly /var/lib/mayfly-job";
        let expected = "/var/lib/mayfly-job:/bin/bash\nroot 700\nroot 755\nmayfly-job 750\n";
        assert!(image.run_inside(facts).ends_with(expected), "{}", image.run_inside(facts));
        image.run_inside(&format!("[ -L {enabled} ] && mayfly lint --config /etc/mayfly/config.toml"));

        // The users of slots exist after an administrator creates them.
        let slots = "systemd-sysusers /usr/share/mayfly/sysusers-slots.conf; \
                     systemd-tmpfiles --create /usr/share/mayfly/tmpfiles-slots.conf; \
                     getent passwd ci-0 ci-15 | cut -d : -f 1,6,7; stat -c '%U %G %a' /var/lib/mayfly-ci/15; \
                     [ $(id -g ci-0) = $(id -g ci-15) ] && id -gn ci-0";
        let made = "ci-0:/var/lib/mayfly-ci/0:/bin/bash\nci-15:/var/lib/mayfly-ci/15:/bin/bash\nci-15 ci 700\nci\n";
        assert_eq!(image.run_inside("getent passwd ci-0 || :"), "");
        assert!(image.run_inside(slots).ends_with(made), "{}", image.run_inside(slots));
        image.run_inside("for n in $(seq 0 15); do userdel ci-$n; done; groupdel ci; rm -r /var/lib/mayfly-ci");

        // An upgrade keeps the administrator's changes; a purge removes everything.
        image.run_inside("echo '# ours' >>/etc/mayfly/config.toml; systemctl disable mayfly.service");
        image.run_inside(&format!(
            "dpkg --install /mayfly.deb; [ ! -e {enabled} ]; grep -q ours /etc/mayfly/config.toml"
        ));
        image.run_inside("dpkg --remove mayfly; [ ! -e /usr/bin/mayfly ]; grep -q ours /etc/mayfly/config.toml");
        let left = "find / -xdev -path /proc -prune -o -name '*mayfly*' ! -name mayfly.deb -print";
        assert_eq!(image.run_inside(&format!("dpkg --purge mayfly >/dev/null; {left}")), "");

        let directory = tempfile::tempdir().expect("a directory");
        let rpm = build_packages(directory.path(), "rpm").remove(0);
        let with_root = |arguments: &str| {
            let root = image.root().display();
            // `/proc` is mounted, as in a container build.
            let around = format!("mount -t proc proc {root}/proc; trap 'umount {root}/proc' EXIT");
            output_of(&format!("{around}; rpm --root {root} --dbpath /var/lib/rpm {arguments}"), &rpm);
        };
        with_root("--install --nodeps \"$1\"");
        assert!(image.run_inside(facts).ends_with(expected), "{}", image.run_inside(facts));
        image.run_inside(&format!("[ -L {enabled} ] && mayfly lint --config /etc/mayfly/config.toml"));
        with_root("--erase --nodeps mayfly");
        image.run_inside(&format!("[ ! -e {enabled} ] && [ ! -e /usr/bin/mayfly ]"));
    });
}
