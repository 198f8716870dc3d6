#!/usr/bin/env bash
# Builds the image's CPU variant without a Docker engine, and uses it as a cluster would: under another user id, with
# signals. Run by hand, as root, on Debian with buildah and debootstrap; needs about 10 GB in $WORK.
#
#   WORK           the folder for the stand-in base image, the image and its volume (default: a new folder)
#   TORCH_INDEX    an index with PyTorch's CPU builds, or
#   TORCH_WHEELS   a folder with torch's CPU wheel for the base's Python; the build sees it as /torch
#   PIP_CONFIG     a pip.conf passed to the build as a secret; with TORCH_WHEELS it sets find-links = /torch
#   CERTIFICATES   a bundle of certificates for the build to trust, for use behind a proxy that has its own
#   SUITE          the Debian release of the stand-in (default: bookworm, whose Python is 3.11)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
WORK=${WORK:-$(mktemp -d)}
SUITE=${SUITE:-bookworm}
export BUILDAH_ISOLATION=chroot
user=4242 # neither root nor the image's own user
mkdir -p "$WORK"

storage() { buildah --root "$WORK/storage" --runroot "$WORK/run" "$@"; }
say() { printf '\n== %s\n' "$*" >&2; }
fail() { echo "FAILED: $*" >&2; exit 1; }

# What the Dockerfile needs of python:VERSION-slim-bookworm: an interpreter with venv, and certificates.
if [ ! -f "$WORK/base.tar" ]; then
  say "a stand-in for the base image: Debian $SUITE"
  debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv "$SUITE" "$WORK/base" ${MIRROR:+"$MIRROR"} \
    > "$WORK/debootstrap.log"
  if [ -n "${CERTIFICATES:-}" ]; then
    cat "$CERTIFICATES" >> "$WORK/base/etc/ssl/certs/ca-certificates.crt"
  fi
  rm -rf "$WORK"/base/var/cache/apt/archives/*.deb
  tar -C "$WORK/base" -cf "$WORK/base.tar" . && rm -rf "$WORK/base"
fi
if ! storage inspect --type image mambabyte-base > /dev/null 2>&1; then
  scratch=$(storage from scratch)
  storage add --quiet "$scratch" "$WORK/base.tar" /
  storage commit --quiet --rm "$scratch" mambabyte-base
fi

say "the image"
storage bud --format docker --tag mambabyte --pull-never \
  --build-arg BASE=localhost/mambabyte-base --build-arg TORCH=cpu \
  ${TORCH_INDEX:+--build-arg TORCH_INDEX="$TORCH_INDEX"} ${TORCH_WHEELS:+--volume "$TORCH_WHEELS:/torch:ro"} \
  ${PIP_CONFIG:+--secret id=pip,src="$PIP_CONFIG"} . > "$WORK/build.log" 2>&1 || { tail -n 30 "$WORK/build.log"; fail "the build"; }

say "the image's configuration"
storage inspect --type image mambabyte > "$WORK/image.json"
python3 - "$WORK/image.json" << 'PYTHON'
import json, sys

config = json.load(open(sys.argv[1]))["Docker"]["config"]
assert config["Entrypoint"] == ["tini", "--", "mambabyte"], config["Entrypoint"]
assert config["Healthcheck"]["Test"] == ["CMD", "mambabyte", "doctor"], config["Healthcheck"]
assert config["User"] == "1000:1000" and list(config["Volumes"]) == ["/srv"], config
PYTHON
for secret in TORCH_INDEX PIP_CONFIG PIP_INDEX_URL pip.conf; do
  ! grep -q "$secret" "$WORK/image.json" || fail "the image's history names $secret"
done

container=$(storage from --pull-never mambabyte)
trap 'storage rm "$container" > /dev/null' EXIT
storage config --volume /srv- "$container" # otherwise the image's own volume, which is inaccessible here, would hide ours
rm -rf "$WORK/srv" && mkdir -p "$WORK/srv" && chown "$user" "$WORK/srv"
in_image() { storage run --user "$user" --volume "$WORK/srv:/srv" "$container" -- "$@"; }
mambabyte() { in_image tini -- mambabyte "$@"; }

say "no pip.conf, no pip, a complete list of components"
# shellcheck disable=SC2016 # expanded in the image
in_image sh -c 'test ! -e /etc/pip.conf && test ! -e /opt/mambabyte/bin/pip && test "$(id -u)" != 0' || fail "leftovers"
in_image python3 -c '
import json
from importlib.metadata import distributions
listed = {(each["name"], each["version"]) for each in json.load(open("/opt/mambabyte/sbom.json"))["components"]}
there = {(each.name, each.version) for each in distributions() if str(each.locate_file("")).startswith("/opt/mambabyte")}
missing = {each for each in there - listed if each[0] != "mambabyte"}
assert listed and not missing, missing
print(len(listed), "components in sbom.json")'

say "the health check"
mambabyte doctor

say "train"
mambabyte train experiment=tiny

say "eval"
mambabyte eval --bpb --json ckpt=runs/tiny max_bytes=16384

say "SIGTERM during training: saved, exit code 75, resumed by the same command"
preempted=(train experiment=tiny name=preempted trainer.max_steps=400 callbacks.sample_every=0)
# chroot isolation has no process namespace, so the shell's process id, which tini takes over, is valid here too.
in_image sh -c 'echo $$ > /srv/pid; exec tini -- mambabyte "$@"' sh "${preempted[@]}" &
job=$!
for _ in $(seq 300); do
  [ "$(cat "$WORK/srv/runs/preempted/metrics.csv" 2> /dev/null | wc -l)" -lt 3 ] || break
  sleep 1
done
kill -TERM "$(cat "$WORK/srv/pid")"
code=0; wait "$job" || code=$?
[ "$code" = 75 ] || fail "exit code $code after SIGTERM, not 75"
mambabyte "${preempted[@]}" 2> >(tee "$WORK/resumed.log" >&2)
grep -q "from step" "$WORK/resumed.log" || fail "it did not resume"

say "passed"
echo "To clean up: buildah --root $WORK/storage --runroot $WORK/run rmi --all; rm -r $WORK" >&2
