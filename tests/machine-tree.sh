#!/bin/sh
# Makes the Debian tree that machines of the tests boot from, unless it is there, and prints where. As root; a minute and
# 280 MB the first time. The machines only read it, also those of several checkouts.
set -eu

# The release of this machine: the program under test was linked against its libraries.
. /etc/os-release
packages=systemd,systemd-sysv,dbus,cloud-init,iproute2,ca-certificates,procps,git,nftables
# What is written below is part of the recipe: change the number with it.
recipe="1 $VERSION_CODENAME $packages"
cache=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/mayfly-tests
tree=$cache/tree-$(printf %s "$recipe" | sha256sum | cut -c 1-12)

mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9
if [ ! -d "$tree" ]; then
    new=$cache/new
    rm -rf "$new"
    mmdebstrap --quiet --variant=minbase --include="$packages" --aptopt='APT::Install-Recommends "false"' \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' "$VERSION_CODENAME" "$new" >&2
    # Nothing of the machine that made it.
    rm -f "$new/etc/hostname" "$new/etc/resolv.conf"
    : >"$new/etc/machine-id"
    cat >"$new/etc/cloud/cloud.cfg.d/99-machine.cfg" <<'END'
datasource_list: [ Ec2 ]
datasource: {Ec2: {strict_id: false, timeout: 5, max_wait: 20}}
network: {config: disabled}
cloud_init_modules: [bootcmd, write-files]
cloud_config_modules: [runcmd]
cloud_final_modules: [scripts-user]
END
    mv "$new" "$tree"
fi
echo "$tree"
