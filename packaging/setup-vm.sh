#!/usr/bin/env bash
# Installs what `make test-vm` needs besides packaging/setup.sh: QEMU's emulation of a PC and what builds a disk for
# it. Fails with the reason on a machine that cannot have them.
set -euo pipefail
packages=(qemu-system-x86 qemu-utils mmdebstrap e2fsprogs kmod cpio zstd)
missing=()
for package in "${packages[@]}"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
((${#missing[@]})) || exit 0
if ((EUID)); then
    echo "missing: ${missing[*]} – run 'sudo make test-vm', or: sudo apt install ${missing[*]}" >&2
    exit 1
fi
echo "installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
