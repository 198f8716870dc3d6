#   docker build -t mambabyte .
#   docker run --gpus all mambabyte train +experiment=pg19
# Runs, prepared data and caches land in the volume /srv; for a folder of your own in its place, add
# --user "$(id -u)" -v "$PWD:/srv". Build arguments:
#   TORCH                 cuda, or cpu together with TORCH_INDEX
#   TORCH_INDEX           a further index, one that holds torch's CPU builds
#   PIP_INDEX_URL         your own index in place of pip's; one that wants a password goes into a pip.conf, given as
#                         --secret id=pip,src=pip.conf, which leaves no trace in the image
# With --target compiled, mamba-ssm's and causal-conv1d's CUDA kernels are compiled in; without, Triton's alone serve.
#   TORCH_CUDA_ARCH_LIST  the compute capabilities that they are compiled for
#   MAX_JOBS              how many files are compiled at once, 4 GB of memory each
ARG BASE=python:3.12.14-slim-bookworm

# Every package by version and hash; pip and what else builds the image stay in an environment of their own.
FROM ${BASE} AS build
ARG TORCH=cuda
ARG TORCH_INDEX
ARG PIP_INDEX_URL
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_DEPS=1
WORKDIR /src
COPY docker/locks docker/locks
# setuptools comes first: one package has no wheel, and must not be built by a setuptools that no lock names.
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
# The list of components, CycloneDX.
ENV SBOM="/opt/build/bin/cyclonedx-py environment --output-reproducible --output-file /opt/mambabyte/sbom.json"
RUN $SBOM /opt/mambabyte/bin/python

# mamba-ssm and causal-conv1d, compiled once against this torch by the nvcc of its own CUDA version. Their setup.py
# lists architectures of its own, which would count before TORCH_CUDA_ARCH_LIST.
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
# g++ compiles the CPU kernels for the processor that the container runs on, at first use; gcc Triton's launchers.
# The folders are open to any --user. A base's security fixes move Debian's versions, so none is pinned.
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
# Training steps keep the device busy: seldom, and with patience.
HEALTHCHECK --interval=10m --timeout=2m --start-period=2m CMD ["mambabyte", "doctor"]
# tini passes SIGTERM on, so that `docker stop` saves a checkpoint; exec form, or a shell would keep the signal.
ENTRYPOINT ["tini", "--", "mambabyte"]
CMD ["--help"]

FROM runtime AS compiled
COPY --from=kernels /opt/mambabyte /opt/mambabyte

FROM runtime
COPY --from=build /opt/mambabyte /opt/mambabyte
