#!/usr/bin/env bash
# Writes docker/locks/*.lock: every package of the image, with its version and the hashes of its files.
#   make lock                   keeps the locked versions where pyproject.toml and constraints.txt allow it
#   make lock ARGS=--upgrade    takes the newest versions
#   make lock TORCH_INDEX=URL   also writes torch-cpu.lock, from an index with PyTorch's CPU builds
# Needs uv on the path. The locks are valid for Python 3.11 and later on any platform.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
locks=docker/locks
universal=(--universal --python-version 3.11)
upgrade=("$@")
new=$(mktemp -d)
trap 'rm -rf "$new"' EXIT

# compile NAME ARGUMENTS: write $new/NAME. uv keeps the versions that the file already lists.
compile() {
  local name=$1
  shift
  uv pip compile --quiet --generate-hashes --no-annotate --no-header -c constraints.txt "${upgrade[@]}" \
    --output-file "$new/$name" "$@" > /dev/null
}

for lock in "$locks"/*.lock; do
  cp "$lock" "$new/$(basename "$lock" .lock)"
done
rm -f "$new/torch-cpu" # written below, or left as it is

# Both builds of torch share one resolution; they differ only in torch itself and in the CUDA build's dependencies.
cat "$new"/project "$new"/torch-cuda > "$new/all" 2> /dev/null || true
compile all "${universal[@]}" pyproject.toml
rm -f "$new/project" "$new/torch-cuda"
awk -v folder="$new/" '
  /^[a-z]/ { name = /^(torch|triton|nvidia-[a-z0-9-]+|cuda-[a-z]+)==/ ? "torch-cuda" : "project" }
  { print > (folder name) }' "$new/all"

# The build tools, the compiler of the kernels, and the kernels' sources. The sources are locked without dependencies,
# since only their compiled modules are used.
compile build "${universal[@]}" -c "$new/all" "$locks/build.in"
compile compile "${universal[@]}" -c "$new/all" "$locks/compile.in"
compile kernels --no-deps --no-build-isolation --python-version 3.12 --python-platform linux "$locks/kernels.in"

if [ -n "${TORCH_INDEX:-}" ]; then
  grep '^torch==' constraints.txt > "$new/torch.in"
  compile torch-cpu --no-deps --python-version 3.12 --python-platform x86_64-manylinux_2_28 \
    --index-url "$TORCH_INDEX" "$new/torch.in"
else
  echo "lock: torch-cpu.lock is unchanged; update it with TORCH_INDEX=<an index with PyTorch's CPU builds>" >&2
fi

for name in project torch-cuda build compile kernels torch-cpu; do
  [ ! -f "$new/$name" ] ||
    { echo "# Written by \`make lock\`; do not edit."; grep -v '^#' "$new/$name"; } > "$locks/$name.lock"
done
