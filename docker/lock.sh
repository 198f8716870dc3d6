#!/usr/bin/env bash
# Writes docker/locks/*.lock: every package of the image, at one version, with the hashes of its files.
#   make lock                     keeps the versions that are locked, as far as pyproject.toml and constraints.txt let it
#   make lock ARGS=--upgrade      takes the newest
#   make lock TORCH_INDEX=URL     writes torch-cpu.lock too, from an index of PyTorch's CPU builds
# Needs uv on the path. The locks hold for Python 3.11 and later on any platform.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
locks=docker/locks
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

compile() {
  uv pip compile --quiet --generate-hashes --no-annotate --no-header "$@"
}

written() { # written LOCK: names its maker
  { echo "# Written by \`make lock\`; do not edit."; cat; } > "$locks/$1"
}

# One resolution for both builds of torch: they differ in torch itself and in what only its CUDA build needs.
sed '/^#/d' "$locks"/project.lock "$locks"/torch-cuda.lock > "$scratch/all" || true
compile "${@}" --universal --python-version 3.11 -c constraints.txt pyproject.toml --output-file "$scratch/all" > /dev/null
awk -v cuda="$scratch/cuda" -v rest="$scratch/rest" '
  /^[a-z]/ { file = /^(torch|triton|nvidia-[a-z0-9-]+|cuda-[a-z]+)==/ ? cuda : rest }
  { print > file }' "$scratch/all"
written project.lock < "$scratch/rest"
written torch-cuda.lock < "$scratch/cuda"

# What builds the image, what compiles the kernels, and the kernels' sources, which stay without their dependencies:
# only their compiled modules are used.
for name in build compile; do
  sed '/^#/d' "$locks/$name.lock" > "$scratch/$name" 2> /dev/null || true
  compile "$@" --universal --python-version 3.11 -c constraints.txt -c "$scratch/all" "$locks/$name.in" \
    --output-file "$scratch/$name" > /dev/null
  written "$name.lock" < "$scratch/$name"
done
compile "$@" --no-deps --no-build-isolation --python-version 3.12 --python-platform linux -c constraints.txt \
  "$locks/kernels.in" | written kernels.lock

if [ -n "${TORCH_INDEX:-}" ]; then
  grep '^torch==' constraints.txt | compile --no-deps --python-version 3.12 --python-platform x86_64-manylinux_2_28 \
    --index-url "$TORCH_INDEX" - | written torch-cpu.lock
else
  echo "lock: torch-cpu.lock stays as it is; TORCH_INDEX=<an index of PyTorch's CPU builds> renews it" >&2
fi
