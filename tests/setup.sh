#!/bin/sh
# Installs the tools that the tests and the static build need, on a Debian machine with Rust. Skips installed ones.
set -eu

missing=
need() { command -v "$1" >/dev/null 2>&1 || missing="$missing $2"; }
need git git
need cc gcc
need dash dash
# The static busybox: the images of the tests contain only it.
{ command -v busybox >/dev/null && ! ldd "$(command -v busybox)" >/dev/null 2>&1; } || missing="$missing busybox-static"
need dockerd docker.io
need docker docker.io
need docker-registry docker-registry
need iptables iptables
need ip iproute2
need unshare util-linux
need ps procps
need unzip unzip
need zip zip
need zstd zstd
need bsdtar libarchive-tools
need git-lfs git-lfs
need systemd-nspawn systemd-container
need mmdebstrap mmdebstrap
need cloud-init cloud-init
need rpmbuild rpm
need lintian lintian
need rpmlint rpmlint
need musl-gcc musl-tools
[ -e /usr/share/zoneinfo/Europe/Amsterdam ] || missing="$missing tzdata"
need promtool prometheus
need squid squid
python3 -c "import ensurepip" >/dev/null 2>&1 || missing="$missing python3-venv"
need nft nftables
need nsenter util-linux
# Shows the status page of the manager.
need chromium chromium
need podman podman
need newuidmap uidmap
need catatonit catatonit
need slirp4netns slirp4netns
[ -e /usr/lib/podman/netavark ] || missing="$missing netavark"
[ -e /usr/lib/podman/aardvark-dns ] || missing="$missing aardvark-dns"
need script bsdutils
need zsh zsh
need fish fish
if [ -n "$missing" ]; then
    [ "$(id -u)" = 0 ] || { echo "run as root, or install:$missing" >&2; exit 1; }
    apt-get -qq update
    # shellcheck disable=SC2086 # a list of packages
    DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $missing >/dev/null
fi

# A server for the AWS APIs.
moto="${XDG_CACHE_HOME:-$HOME/.cache}/mayfly-tests/moto"
if [ "$("$moto/bin/pip" show moto 2>/dev/null | sed -n 's/^Version: //p')" != 5.2.5 ]; then
    python3 -m venv "$moto"
    "$moto/bin/pip" --quiet install 'moto[server]==5.2.5' boto3
fi

# Checks the templates of docs/fleet.
lint="${XDG_CACHE_HOME:-$HOME/.cache}/mayfly-tests/cfn-lint"
if [ "$("$lint/bin/pip" show cfn-lint 2>/dev/null | sed -n 's/^Version: //p')" != 1.58.0 ]; then
    python3 -m venv "$lint"
    "$lint/bin/pip" --quiet install 'cfn-lint==1.58.0'
fi

# Parses the Terraform module and the Packer template of docs/fleet.
hcl="${XDG_CACHE_HOME:-$HOME/.cache}/mayfly-tests/hcl2"
if [ "$("$hcl/bin/pip" show python-hcl2 2>/dev/null | sed -n 's/^Version: //p')" != 8.1.4 ]; then
    python3 -m venv "$hcl"
    "$hcl/bin/pip" --quiet install 'python-hcl2==8.1.4'
fi

# An S3 server that verifies signatures; takes a minute or two the first time.
tools="${XDG_CACHE_HOME:-$HOME/.cache}/mayfly-tests"
if [ ! -x "$tools/bin/s3s-fs" ]; then
    built=$(mktemp -d)
    CARGO_PROFILE_DEV_DEBUG=false CARGO_TARGET_DIR=$built \
        cargo install --quiet --locked --debug --root "$tools" s3s-fs@0.14.1 --features binary
    rm -rf "$built"
    strip "$tools/bin/s3s-fs"
fi

if command -v rustup >/dev/null 2>&1; then
    rustup target list --installed | grep -qx x86_64-unknown-linux-musl ||
        rustup --quiet target add x86_64-unknown-linux-musl
fi

# The tree from which the machines of the tests boot; takes a minute the first time.
if [ "$(id -u)" = 0 ]; then
    "$(dirname "$0")/machine-tree.sh" >/dev/null
fi
