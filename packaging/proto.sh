#!/usr/bin/env bash
# Generates spliffd/pb from proto/spliff.proto (committed; `make check` fails when it drifts).
# Argument: the venv's bin folder.
set -euo pipefail
bin=$1
out=${2:-.}
"$bin/python" -m grpc_tools.protoc -Ispliffd/pb=proto \
    --plugin=protoc-gen-mypy="$bin/protoc-gen-mypy" --plugin=protoc-gen-mypy_grpc="$bin/protoc-gen-mypy_grpc" \
    --python_out="$out" --grpc_python_out="$out" --mypy_out="$out" --mypy_grpc_out="$out" \
    spliffd/pb/spliff.proto
