#!/usr/bin/env bash
# Builds dist/spliff_VERSION_ARCH.deb: a virtual environment of Debian's own Python at /opt/spliff, which
# sees Debian's python3-bpfcc, and what ties it into the system. Argument: the checkout's venv/bin folder.
#
# The package holds the versions that this checkout's venv was tested with. Needs no root; needs the network
# only where pip does not have the wheels yet.
set -euo pipefail
bin=$(realpath "$1")
here=$(realpath "$(dirname "$0")")
cd "$here/../.."
python=/usr/bin/python3
umask 022
# The same commit gives the same files, however often it is built.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
export SOURCE_DATE_EPOCH PIP_DISABLE_PIP_VERSION_CHECK=1

[[ -f spliffctl/__main__.py && -f spliffd/__main__.py ]] || {
    echo "deb: spliffd/__main__.py or spliffctl/__main__.py is missing: there is nothing to start" >&2
    exit 1
}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
venv=$root/opt/spliff

echo "deb: wheel"
"$bin/pip" wheel --quiet --no-deps --wheel-dir "$work" . 2> >(grep -v '^WARNING' >&2)
wheel=("$work"/spliff-*.whl)
VERSION=$(basename "${wheel[0]}" | cut -d- -f2)

echo "deb: virtual environment"
"$python" -m venv --system-site-packages --without-pip "$venv"
"$bin/pip" list --local --exclude-editable --format=freeze >"$work/constraints.txt"
# --ignore-installed: what the building machine happens to have under /usr is not there on another one.
"$bin/pip" --python "$venv/bin/python3" install --quiet --no-compile --ignore-installed \
    --no-warn-script-location --constraint "$work/constraints.txt" "${wheel[0]}[daemon,tui]" 2> >(grep -v '^WARNING' >&2)

site=("$venv"/lib/python3.*/site-packages)
"$bin/python" packaging/hot.py
for file in spliff_hot*.so spliffd/compiled.json $(find spliffd -name '*.so'); do
    install -Dm644 "$file" "${site[0]}/$file"
done

echo "deb: trimming"
for script in "$venv"/bin/*; do
    case ${script##*/} in python | python3 | python3.* | spliffd | spliffctl) ;; *) rm "$script" ;; esac
done
rm -rf "$venv/include" "$venv/share" "$venv/lib64"
find "$site" -depth -type d \( -name tests -o -name test \) -exec rm -rf {} +
find "$site" -type f \( -name '*.pyx' -o -name '*.pxd' -o -name '*.pxi' -o -name '*.pyi' -o -name '*.c' -o -name '*.h' \
    -o -name '*.a' -o -name '*.exe' \) ! -path '*/spliffd/bpf/*' -delete
rm -rf "$site"/capstone/include "$site"/*.dist-info/{direct_url.json,REQUESTED}
find "$site" -type f -exec chmod 644 {} +
# Libraries are not programs: an interpreter line in them only confuses.
find "$site" -type f -name '*.py' -exec sed -i '1s|^#!.*||' {} +
if command -v strip >/dev/null; then
    find "$root" -type f -name '*.so*' -exec strip --strip-unneeded {} +
fi
# The environment was made in a staging folder; it lives in /opt/spliff. -I: neither PYTHONPATH, nor the
# current folder, nor root's ~/.local can put code into the daemon.
sed -i "1s|^#!.*|#!/opt/spliff/bin/python3 -I|" "$venv/bin/spliffd" "$venv/bin/spliffctl"
sed -i "s|^command = .*|command = $python -m venv --system-site-packages /opt/spliff|" "$venv/pyvenv.cfg"
# Compiled here, so that root's first start writes nothing; unchecked, so that no file time matters.
"$python" -m compileall -q -j 0 -s "$root" -p / --invalidation-mode unchecked-hash "$venv/lib"
if left=$(grep -rIl -e "$work" "$root"); then
    echo "deb: these files name the building folder: $left" >&2
    exit 1
fi

echo "deb: system files"
install -d "$root"/{usr/bin,usr/share/doc/spliff,usr/share/lintian/overrides}
ln -s /opt/spliff/bin/spliffd /opt/spliff/bin/spliffctl "$root/usr/bin/"
install -Dm644 packaging/systemd/spliffd.service "$root/lib/systemd/system/spliffd.service"
install -Dm644 packaging/systemd/spliff.sysusers "$root/usr/lib/sysusers.d/spliff.conf"
install -Dm644 packaging/systemd/spliff.tmpfiles "$root/usr/lib/tmpfiles.d/spliff.conf"
install -Dm644 packaging/grafana/spliff.json "$root/usr/share/spliff/grafana/spliff.json"
install -Dm644 packaging/prometheus/spliff.rules.yml "$root/usr/share/spliff/prometheus/spliff.rules.yml"
install -m644 README.md LICENSE "$root/usr/share/doc/spliff/"
install -m644 "$here/lintian-overrides" "$root/usr/share/lintian/overrides/spliff"
documents() { "$venv/bin/python3" -I -B "$here/documents.py" "$@"; }
documents config >"$work/spliffd.toml"
documents copyright "$site" >"$root/usr/share/doc/spliff/copyright"
# RECORD lists what was installed, not what is left after trimming; the copyright file needed it.
rm "$site"/*.dist-info/RECORD
"$venv/bin/python3" -I -B "$here/manual.py" "$root/usr/share/man" "$SOURCE_DATE_EPOCH"
documents changelog CHANGELOG.md "$VERSION" "$SOURCE_DATE_EPOCH" | gzip -9n >"$root/usr/share/doc/spliff/changelog.gz"
chmod 644 "$root"/usr/share/doc/spliff/*
completion() {
    _SPLIFFCTL_COMPLETE=${1}_source "$venv/bin/python3" -IB "$venv/bin/spliffctl" >"$work/completion"
    grep -q spliffctl "$work/completion" || { echo "deb: spliffctl gave no completion for $1" >&2; exit 1; }
    install -Dm644 "$work/completion" "$root/$2"
}
completion bash usr/share/bash-completion/completions/spliffctl
completion zsh usr/share/zsh/vendor-completions/_spliffctl
completion fish usr/share/fish/vendor_completions.d/spliffctl.fish

echo "deb: package"
mkdir -p dist
ARCH=$(dpkg --print-architecture)
read -r this next < <("$python" -c 'import sys; a, b = sys.version_info[:2]; print(f"{a}.{b} {a}.{b + 1}")')
install -m755 "$here"/{postinst,prerm,postrm} "$work/"
sed -e "s|@VERSION@|$VERSION|; s|@ARCH@|$ARCH|; s|@PYTHON@|$this|; s|@NEXT_PYTHON@|$next|" \
    -e "s|@MTIME@|$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)|" "$here/nfpm.yaml" >"$work/nfpm.yaml"
find "$root" "$work/spliffd.toml" "$work"/{postinst,prerm,postrm} -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
target=$PWD/dist/spliff_${VERSION}_$ARCH.deb
(cd "$work" && "$bin/nfpm" package --config nfpm.yaml --packager deb --target "$target" >/dev/null)
echo "deb: dist/${target##*/}, $(($(stat -c %s "$target") / 1024)) KiB"
