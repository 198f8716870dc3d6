"""The README.md of an exported model: what it is, how it was trained and measured, and how to use it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from mambabyte.models import ByteLM
from mambabyte.runtime.terminal import visible
from mambabyte.runtime.units import accuracy_in_words, counted, protocol_in_words

_COMMAND = 'mambabyte generate ckpt=FOLDER prompt="Once "'
_SOURCES = {
    "FilesSource": "files of text",
    "HeldOutSource": "a data set of the Hugging Face hub",
    "HuggingFaceSource": "a data set of the Hugging Face hub",
    "MixtureSource": "a mixture of several data sets",
    "PG19Source": "PG19, books published before 1919",
    "PG19TextsSource": "PG19, books published before 1919",
    "StandardLibrarySource": "the source files of Python's standard library",
}
_NOT_OURS = ("gguf", "adapter")  # what ckpt= does not take
_PYTHON = {
    "safetensors": 'import mambabyte\n\nmodel = mambabyte.load("FOLDER")',
    "mamba_ssm": (
        "from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel\n\n"
        'model = MambaLMHeadModel.from_pretrained("FOLDER", device="cuda")  # its ids are bytes'
    ),
    "transformers": (
        "from transformers import pipeline\n\n"
        'generate = pipeline("text-generation", model="FOLDER")\n'
        'print(generate("Once ", max_new_tokens=100)[0]["generated_text"])'
    ),
    "adapter": (
        "import mambabyte\nfrom peft import PeftModel\n\n"
        'base = mambabyte.load("BASE")  # the model that was adapted\n'
        'model = PeftModel.from_pretrained(base, "FOLDER").merge_and_unload()\n'
        'mambabyte.save(model, "MERGED")  # for ckpt='
    ),
    "gguf": (
        "from llama_cpp import Llama\n\n"
        'model = Llama("FOLDER/model.gguf")\n'
        'print(model.create_completion("Once ", max_tokens=100)["choices"][0]["text"])'
    ),
}


def model_card(
    model: ByteLM,
    format: str,
    config: Mapping[str, Any] | None,
    step: int,
    summary: Mapping[str, Any] | None,
    adapted: str | None = None,
) -> str:
    """The card, as Markdown with the hub's header.

    Args:
        config: the run's configuration without what is of this machine alone; None if it is not known.
        summary: the run's summary.json, if it is of these weights.
        adapted: of adapters, the fingerprint of the weights that they were trained beside.
    """
    header = {"tags": ["mambabyte", "byte-level"], "pipeline_tag": "text-generation"}
    libraries = {"transformers": "transformers", "gguf": "llama.cpp", "adapter": "peft"}
    if format in libraries:
        header["library_name"] = libraries[format]
    what = "Adapters of a" if format == "adapter" else "A"
    parts = [
        f"---\n{yaml.safe_dump(header, sort_keys=False)}---",
        f"# {what} {type(model).__name__} of {model.num_parameters():,} parameters",
        "A language model that reads and writes bytes: 256 symbols, a symbol's id is its byte, and none is "
        f"special. Exported by mambabyte as `{format}`.",
        "## Data and training\n" + _training(config, step),
        "## Bits per byte\n" + _figures(summary, format),
        "## Use\n" + _use(format, adapted),
        f"## Configuration\n```yaml\n{yaml.safe_dump(model.config.to_dict(), sort_keys=False)}```",
    ]
    if config:
        whole = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
        parts.append(f"The run's, without paths of the machine it ran on:\n```yaml\n{whole}```")
    return "\n\n".join(parts) + "\n"


def _training(config: Mapping[str, Any] | None, step: int) -> str:
    if not config:
        return "Not recorded in the file that was exported."
    data = config.get("data")
    source = data.get("source") if isinstance(data, Mapping) else None
    source = source if isinstance(source, Mapping) else {}
    kind = str(source.get("_target_", "")).removeprefix("mambabyte.data.")
    what = _SOURCES.get(kind) or f"data of {kind or 'an unrecorded kind'}"
    parts = source.get("parts")
    named = source.get("name") or source.get("path") or (parts and ", ".join(map(str, parts)))
    what += f" (`{visible(str(named), keep='')}`)" if named else ""
    length = config.get("context_length")
    return f"Trained by mambabyte for {step:,} steps in windows of {length} bytes on {what}."


def _figures(summary: Mapping[str, Any] | None, format: str) -> str:
    if summary and (task := summary.get("validation")) and "accuracy" in task:
        return f"Trained on a task, of which only answers are scored: {accuracy_in_words(task)}."
    found = [summary[key] for key in ("validation", "validation_stateful") if summary and summary.get(key)]
    if not found:
        return "Not measured by the run; `mambabyte eval --bpb` measures it on any data."
    lines = [
        f"- {figure['bits_per_byte']:.4f} on the validation split ({protocol_in_words(figure['protocol'])}, "
        f"{counted(figure['bytes'], 'byte')} in {counted(figure['documents'], 'document')}; data "
        f"{figure['data_fingerprint'][:16]}, weights {figure['weights_fingerprint'][:16]})"
        for figure in found
    ]
    if format in _NOT_OURS:
        return "\n".join(lines)
    protocols = " and ".join(
        f"`mambabyte eval --bpb ckpt=FOLDER data=… protocol={figure['protocol']['name']} "
        f"context_length={figure['protocol']['context_length']}`"
        for figure in found
    )
    return "\n".join(
        [*lines, "", f"Measured again by {protocols}, with the data of the configuration below."]
    )


def _use(format: str, adapted: str | None) -> str:
    if adapted is not None:
        return (
            f"They belong to the weights with sha256 {adapted}, which `mambabyte export` prints, and spoil "
            f"others.\n```python\n{_PYTHON[format]}\n```"
        )
    command = "" if format in _NOT_OURS else f"```bash\n{_COMMAND}\n```\n"
    return f"{command}```python\n{_PYTHON[format]}\n```"
