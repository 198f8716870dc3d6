"""Sentences about faults of the system that a command runs on."""

from __future__ import annotations

from mambabyte.errors import is_out_of_memory
from mambabyte.runtime.system_errors import remedy


def sentence(fault: BaseException) -> str | None:
    """What is wrong with the system and what to do, in a sentence; None if the program is to blame."""
    if (said := out_of_memory(fault)) is not None:
        return said
    if isinstance(fault, RuntimeError) and str(fault) == "Could not determine home directory.":
        return "a path begins with ~ and the name of a user who is not known here: write the folder itself"
    if not isinstance(fault, OSError) or (advice := remedy(fault)) is None:
        return None
    where = f" for '{fault.filename}'" if fault.filename else ""
    return f"the system says '{fault.strerror}'{where}: {advice}, and repeat the command"


def out_of_memory(fault: BaseException | None) -> str | None:
    """The sentence for a fault that too little memory caused, however indirectly; None for any other."""
    while fault is not None and not is_out_of_memory(fault):
        fault = fault.__cause__
    if fault is None:
        return None
    return (
        "there is not enough memory: end other programs, raise the limit (ulimit -v or the container's), or "
        "choose a smaller model, context_length= or batch"
    )
