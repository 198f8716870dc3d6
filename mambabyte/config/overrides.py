"""Overrides as people type them, in Hydra's grammar."""

import os
import re


def as_meant(override: str) -> str:
    """Rewrite an override that Hydra's grammar would reject or alter."""
    key, _, value = override.partition("=")
    if key == "+experiment":  # the defaults list names this group, so that it cannot be added
        return f"experiment={value}"
    if value == "~" or value.startswith("~/"):
        return f"{key}={quoted(os.path.expanduser(value))}"
    if key == "prompt" and not re.fullmatch(r"'.*'|\".*\"", value, re.DOTALL):
        return f"{key}={quoted(value)}"  # Hydra would cut the spaces off its ends
    return override


def quoted(text: str) -> str:
    """``text`` as a value in Hydra's override grammar, so that every character is taken literally."""
    # A backslash counts only before a quote or the end, and before OmegaConf's ${.
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    return "'" + re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text) + "'"
