#!/usr/bin/env bash
# Everything a machine can check: style, types, layers, the contract, drift of generated files.
# Argument: the venv's bin folder.
set -euo pipefail
bin=$1
export PYTHONPATH=$PWD  # this tree, whichever one is installed
echo "ruff"; "$bin/ruff" check . ; "$bin/ruff" format --check .
echo "mypy --strict"; "$bin/mypy"
echo "import-linter"; "$bin/lint-imports" --no-cache | tail -n 4
echo "buf lint"; "$bin/buf" lint
echo "generated code matches the contract"
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
packaging/proto.sh "$bin" "$tmp" 2>/dev/null
for file in "$tmp"/spliffd/pb/*; do diff -q "$file" "spliffd/pb/$(basename "$file")"; done
echo "generated pages match what they describe"
"$bin/python" packaging/docs.py "$tmp"
for page in configuration metrics api; do diff -q "$tmp/$page.md" "docs/$page.md"; done
"$bin/python" packaging/grafana/dashboard.py "$tmp"
diff -q "$tmp/spliff.json" packaging/grafana/spliff.json
echo "all checks passed"
