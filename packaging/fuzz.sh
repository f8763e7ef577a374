#!/bin/bash
# Runs every fuzz/fuzz_*.py for FUZZ_SECONDS (60) each, with the corpus in fuzz/corpus/NAME; fails on a crash.
# Argument: the python to use. What the fuzzer finds new stays out of the checkout, in a temporary folder;
# an input that crashes is kept in fuzz/crashes/NAME-*, to be made a test.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:?usage: packaging/fuzz.sh PYTHON}
seconds=${FUZZ_SECONDS:-60}
found=$(mktemp -d)
trap 'rm -rf "$found"' EXIT
mkdir -p fuzz/crashes
failed=0
for harness in fuzz/fuzz_*.py; do
    name=$(basename "$harness" .py)
    name=${name#fuzz_}
    mkdir -p "$found/$name" "fuzz/corpus/$name"
    echo "== $harness, $seconds s"
    PYTHONPATH=. "$python" "$harness" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=2048 \
        -artifact_prefix="fuzz/crashes/$name-" -print_final_stats=1 "$found/$name" "fuzz/corpus/$name" \
        2>&1 | grep -v -e NEW -e REDUCE -e RELOAD -e INFO || failed=1
done
rmdir --ignore-fail-on-non-empty fuzz/crashes
exit "$failed"
