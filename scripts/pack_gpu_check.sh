#!/usr/bin/env bash
# Packs what `make gpu-check` needs on a machine with a GPU but without a network, into gpu-check-packed/ (git-ignored,
# about 10 MB): wheels of packages that such a machine may lack, and the sources of the peers, which it compiles.
#
#   PYTHON           with pip, and with packaging, setuptools, torch and wheel, which the peers' setup.py import
#                    (default: .venv/bin/python)
#   PYTHON_VERSION   the other machine's (default: 3.12)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-.venv/bin/python}
PYTHON_VERSION=${PYTHON_VERSION:-3.12}
"$PYTHON" -c "import packaging, setuptools, torch, wheel" || {
  echo "pack_gpu_check: $PYTHON lacks what the peers' setup.py import: install packaging, setuptools, torch and wheel" >&2
  exit 1
}
wheels=(hydra-core omegaconf datasets dill multiprocess zstandard brotli constriction tenacity lightning)
folder=gpu-check-packed
mkdir -p "$folder"
rm -f "$folder"/*.whl "$folder"/*.tar.gz

pip() { "$PYTHON" -m pip --disable-pip-version-check "$@"; }

# pip matches the versions of manylinux exactly.
platforms=()
for tag in 2014 _2_17 _2_24 _2_26 _2_27 _2_28; do
  platforms+=(--platform "manylinux${tag}_x86_64")
done
pip download --quiet --no-deps --only-binary=:all: --implementation cp --python-version "$PYTHON_VERSION" "${platforms[@]}" \
  --dest "$folder" --constraint constraints.txt "${wheels[@]}"
# omegaconf's parser has no wheel, but any Python can build it
pip wheel --quiet --no-deps --wheel-dir "$folder" "antlr4-python3-runtime==4.9.*"

# The versions that the image compiles, as sources only. Their setup.py files would look for nvcc.
while read -r peer; do
  MAMBA_SKIP_CUDA_BUILD=TRUE CAUSAL_CONV1D_SKIP_CUDA_BUILD=TRUE \
    pip download --quiet --no-deps --no-binary=:all: --no-build-isolation --dest "$folder" "$peer"
done < <(sed -n 's/^\([a-z0-9-]*==[^ ]*\).*/\1/p' docker/locks/kernels.lock)
du -sh "$folder"
