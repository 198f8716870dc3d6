"""mambabyte compress and mambabyte decompress: a file by a model's predictions, and the same file back."""

from pathlib import Path

from omegaconf import DictConfig

from mambabyte.errors import UserError

_SUFFIX = ".mbc"


def run(cfg: DictConfig) -> None:
    """Write the result beside the file, or to ``output``, and say on stdout what it is.

    ``conf/compress.yaml`` has ``lanes`` and ``conf/decompress.yaml`` has not: that tells the two apart.

    Raises:
        UserError: see :mod:`mambabyte.coding`; an unreadable checkpoint, a device that is not there.
    """
    from mambabyte import checkpoints
    from mambabyte.coding import compress_file, decompress_file
    from mambabyte.runtime.devices import choose_device
    from mambabyte.runtime.progress import progress_bar

    compressing = "lanes" in cfg
    source = Path(cfg.file).expanduser()
    target = Path(cfg.output).expanduser() if cfg.output is not None else _beside(source, compressing)
    model = checkpoints.load_model(cfg.ckpt).to(choose_device(cfg.device))
    if compressing:
        window = None if model.recurrent else checkpoints.run_config(cfg.ckpt)["context_length"]
        coded = compress_file(
            model, source, target, cfg.lanes, window, cfg.threads, progress_bar("compressing")
        )
        share = f" ({coded.bits_per_byte:.4f} bits per byte)" if coded.bytes else ""
        print(f"{target}: {coded.bytes:,} bytes in {coded.file_bytes:,}{share}")
    else:
        size = decompress_file(model, source, target, progress_bar("decompressing"))
        print(f"{target}: {size:,} bytes")


def _beside(source: Path, compressing: bool) -> Path:
    if compressing:
        return source.with_name(source.name + _SUFFIX)
    if source.suffix != _SUFFIX or source.name == _SUFFIX:
        raise UserError(f"'{source}' does not end in {_SUFFIX}: name the file to write with output=")
    return source.with_suffix("")
