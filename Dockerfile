# docker build -t mambabyte . && docker run --rm --user "$(id -u)" -v "$PWD:/srv" mambabyte train experiment=quickstart
# With a GPU: add --gpus all. Runs and prepared data land in the mounted folder.
FROM python:3.12-slim AS build
ARG TORCH_INDEX=""
RUN python -m venv /opt/mambabyte
ENV PATH=/opt/mambabyte/bin:$PATH
WORKDIR /src
COPY constraints.txt .
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} -c constraints.txt torch
COPY . .
RUN pip install --no-cache-dir -c constraints.txt .

FROM python:3.12-slim
# g++ compiles the CPU kernels for the processor that the container runs on, at first use.
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --home-dir /srv mambabyte \
    && chown mambabyte /srv
COPY --from=build /opt/mambabyte /opt/mambabyte
# HOME and USER count for any --user: kernels and data sets are cached in the mounted folder too.
ENV PATH=/opt/mambabyte/bin:$PATH PYTHONUNBUFFERED=1 HOME=/srv USER=mambabyte
USER mambabyte
WORKDIR /srv
# tini passes SIGTERM on, so that `docker stop` saves a checkpoint; exec form, or a shell would keep the signal.
ENTRYPOINT ["tini", "--", "mambabyte"]
CMD ["--help"]
