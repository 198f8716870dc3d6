#   docker build -t mambabyte .
#   docker run --gpus all mambabyte train +experiment=pg19
# Runs, prepared data and caches land in the volume /srv; to use a folder of your own instead, add
# --user "$(id -u)" -v "$PWD:/srv". Build arguments:
#   TORCH                 cuda, or cpu together with TORCH_INDEX
#   TORCH_INDEX           an additional index, with torch's CPU builds
#   PIP_INDEX_URL         your own index instead of pip's default; if it needs a password, put it into a pip.conf and
#                         pass --secret id=pip,src=pip.conf, which leaves no trace in the image
# --target compiled adds the CUDA kernels of mamba-ssm and causal-conv1d; without it, our own are used.
#   TORCH_CUDA_ARCH_LIST  the compute capabilities to compile them for
#   MAX_JOBS              how many files to compile at once; each needs 4 GB of memory
ARG BASE=python:3.12.14-slim-bookworm

# Install every package by version and hash. pip and the other build tools have an environment of their own.
FROM ${BASE} AS build
ARG TORCH=cuda
ARG TORCH_INDEX
ARG PIP_INDEX_URL
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_DEPS=1
WORKDIR /src
COPY docker/locks docker/locks
# setuptools comes first: one package has no wheel, and must be built with the locked setuptools.
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    python3 -m venv /opt/build \
    && /opt/build/bin/pip install --require-hashes -r docker/locks/build.lock \
    && python3 -m venv --without-pip /opt/mambabyte \
    && /opt/build/bin/pip --python /opt/mambabyte install --require-hashes -c docker/locks/project.lock setuptools \
    && /opt/build/bin/pip --python /opt/mambabyte install --require-hashes --no-build-isolation \
        ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} \
        -r docker/locks/project.lock -r "docker/locks/torch-$TORCH.lock"
COPY . .
RUN /opt/build/bin/pip wheel --no-build-isolation --wheel-dir /wheels . \
    && /opt/build/bin/pip --python /opt/mambabyte install --no-index /wheels/*.whl \
    && /opt/build/bin/pip --python /opt/mambabyte check
# The list of components (SBOM), in CycloneDX format.
ENV SBOM="/opt/build/bin/cyclonedx-py environment --output-reproducible --output-file /opt/mambabyte/sbom.json"
RUN $SBOM /opt/mambabyte/bin/python

# Compile mamba-ssm and causal-conv1d against this torch, with the nvcc of its CUDA version. The runtime's package lacks
# the name that linking needs, libcudart.so. Their setup.py files list architectures of their own, which would override
# TORCH_CUDA_ARCH_LIST; sed removes them.
FROM build AS compile
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
ARG PIP_INDEX_URL
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/build/bin/pip --python /opt/mambabyte install --require-hashes -r docker/locks/compile.lock \
    && /opt/build/bin/pip --python /opt/mambabyte download --require-hashes --no-build-isolation \
        --no-binary :all: --dest /kernels -r docker/locks/kernels.lock
RUN ln -s libcudart.so.13 "$(echo /opt/mambabyte/lib/python3*/site-packages/nvidia/cu13/lib)/libcudart.so"
WORKDIR /kernels
ARG TORCH_CUDA_ARCH_LIST="8.0;9.0;10.0+PTX"
ARG MAX_JOBS=4
ENV MAMBA_FORCE_BUILD=TRUE MAMBA_KEEP_CUDA_BUILD=TRUE CAUSAL_CONV1D_FORCE_BUILD=TRUE \
    PATH=/opt/mambabyte/bin:$PATH
RUN for archive in ./*.tar.gz; do tar -xzf "$archive"; done \
    && sed -i -E 's/cc_flag\.append\("(-gencode|arch=[^"]*)"\)/pass/' ./*/setup.py \
    && CUDA_HOME="$(echo /opt/mambabyte/lib/python3*/site-packages/nvidia/cu13)" \
        /opt/build/bin/pip --python /opt/mambabyte wheel --no-build-isolation --wheel-dir /wheels ./*/

FROM build AS kernels
COPY --from=compile /wheels /wheels
RUN /opt/build/bin/pip --python /opt/mambabyte install --no-index /wheels/mamba_ssm-*.whl /wheels/causal_conv1d-*.whl \
    && $SBOM /opt/mambabyte/bin/python

FROM ${BASE} AS runtime
# At first use, g++ compiles the CPU kernels for the host's processor, and gcc compiles Triton's launchers.
# The folders are open to any --user. Debian's versions change with security fixes, so they are not pinned.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --no-create-home --home-dir /srv mambabyte \
    && install --directory --owner mambabyte --mode 1777 /srv /srv/runs /srv/data /srv/cache
ENV PATH=/opt/mambabyte/bin:$PATH PYTHONUNBUFFERED=1 HOME=/srv USER=mambabyte \
    XDG_CACHE_HOME=/srv/cache TRITON_CACHE_DIR=/srv/cache/triton TORCHINDUCTOR_CACHE_DIR=/srv/cache/inductor
USER 1000:1000
WORKDIR /srv
VOLUME ["/srv"]
# Rarely, and with a long timeout, because training keeps the device busy.
HEALTHCHECK --interval=10m --timeout=2m --start-period=2m CMD ["mambabyte", "doctor"]
# tini passes SIGTERM on, so that `docker stop` saves a checkpoint. Exec form: a shell would not forward the signal.
ENTRYPOINT ["tini", "--", "mambabyte"]
CMD ["--help"]

FROM runtime AS compiled
COPY --from=kernels /opt/mambabyte /opt/mambabyte

FROM runtime
COPY --from=build /opt/mambabyte /opt/mambabyte
