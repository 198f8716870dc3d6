"""Total bytes per second of many clients of `mambabyte serve` at once, over one client's.

    python benchmarks/serving.py [--d-model 256 --layers 4 --clients 16 --bytes 512]
    python benchmarks/serving.py --d-model 512 --layers 12 --bytes 256

The server is a process of its own, the clients are threads of this one, on the same machine. Each asks
/v1/completions for one text, whole or as a stream, and the time is until the last has all of its text.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from measuring import measure, parser, report

import mambabyte
from mambabyte.models import MambaByteConfig


def main() -> None:
    arguments = parser(__doc__.splitlines()[0], repeats=5)
    for name, default in (("d-model", 256), ("layers", 4), ("clients", 16), ("bytes", 512)):
        arguments.add_argument(f"--{name}", type=int, default=default)
    options = arguments.parse_args()
    torch.manual_seed(0)
    model = MambaByteConfig(d_model=options.d_model, n_layer=options.layers).build().eval()
    with tempfile.TemporaryDirectory() as folder:
        mambabyte.save(model, f"{folder}/model")
        command = [sys.executable, "-m", "mambabyte", "serve", f"ckpt={folder}/model", "port=0", "device=cpu"]
        limits = [f"max_rows={options.clients}", f"max_completion_bytes={options.bytes}"]
        with subprocess.Popen(
            [*command, *limits], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as server:
            try:
                url = server.stdout.readline().split(" served at ")[1].split()[0]
                timings = measure(calls(url, options.clients, options.bytes), options.repeats)
            finally:
                server.terminate()
    ratios = {}
    for kind in ("whole", "streamed"):
        one, many = timings[f"1 client, {kind}"].median, timings[f"{options.clients} clients, {kind}"].median
        ratios[f"{options.clients} clients over 1, {kind}"] = options.clients * one / many
    setting = {"d_model": options.d_model, "layers": options.layers, "bytes of each client": options.bytes}
    report("serving", timings, ratios, options.json, **setting)


def calls(url: str, clients: int, length: int) -> dict[str, Callable[[], object]]:
    """The calls to measure, by name."""
    pool = ThreadPoolExecutor(clients)

    def ask(number: int, stream: bool) -> None:
        body = {"model": "model", "prompt": f"Client {number} says: ", "max_tokens": length, "seed": number}
        request = urllib.request.Request(
            f"{url}/v1/completions",
            json.dumps({**body, "stream": stream}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as answer:
            text = answer.read()
        assert b'"length"' in text and (not stream or text.endswith(b"data: [DONE]\n\n")), text[-200:]

    def together(count: int, stream: bool) -> Callable[[], object]:
        return lambda: list(pool.map(lambda number: ask(number, stream), range(count)))

    return {
        f"{count} client{'s' * (count > 1)}, {kind}": together(count, kind == "streamed")
        for kind in ("whole", "streamed")
        for count in (1, clients)
    }


if __name__ == "__main__":
    main()
