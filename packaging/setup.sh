#!/usr/bin/env bash
# Sets up a checkout on Debian 12, as root: BCC from Debian, a virtual environment of Debian's own
# Python (BCC is built for it), the user that the unprivileged processes run as.
# Argument: folder of the virtual environment.
set -euo pipefail
venv=$1
packages=(python3-bpfcc python3-venv libbpf1 curl openssl nginx-light wrk tshark bpftool iproute2 systemd prometheus
    binutils util-linux libseccomp2 wireguard-go wireguard-tools iperf3 nghttp2-client gcc libc6-dev python3-dev
    wget git nodejs redis-server apache2-bin tmux gnutls-bin libnss3-tools libwolfssl35 libmbedtls14)
command -v npm >/dev/null || packages+=(npm) # Node.js from elsewhere than Debian brings its own
missing=()
for package in "${packages[@]}"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
if ((${#missing[@]})); then
    if ((EUID)); then
        echo "missing: ${missing[*]} – run 'sudo make setup', or: sudo apt install ${missing[*]}" >&2
        exit 1
    fi
    echo "installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    # Tests start servers of their own; the packages must not start theirs (invoke-rc.d asks this script).
    policy=/usr/sbin/policy-rc.d
    if [[ ! -e $policy ]]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
        trap 'rm -f "$policy"' EXIT
    fi
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi
[[ -x $venv/bin/python ]] || /usr/bin/python3 -m venv --system-site-packages "$venv"
echo "installing Python packages into $venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check -e '.[daemon,tui,dev]' 2> >(grep -v '^WARNING: Location' >&2)
# What tests start with node, and the published schema of HAR; in the same folder, so that removing it removes
# everything.
npm install --prefix "$venv/node" --silent --no-audit --no-fund '@grpc/grpc-js@1.14' '@grpc/proto-loader@0.8' \
    har-schema@2.0.0
# mitmproxy's reader of flow files, without the rest of it, in a folder that only one test's process looks into.
"$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --upgrade --target "$venv/mitmproxy" \
    mitmproxy==11.0.2 mitmproxy_rs==0.10.7 cryptography==44.0.3 cffi==1.17.1 pyOpenSSL==24.3.0 wsproto==1.2.0 \
    h11==0.14.0 pyparsing==3.2.0 Brotli==1.1.0 zstandard==0.23.0 typing_extensions==4.12.2 \
    2> >(grep -v '^WARNING: Location' >&2)
if ((EUID == 0)) && ! getent passwd spliff >/dev/null; then
    systemd-sysusers "$PWD"/packaging/systemd/spliff.sysusers
fi
