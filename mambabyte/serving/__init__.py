"""An HTTP server around one model: OpenAI's completions API, and a page to watch it write."""

from mambabyte.serving.limits import Limits

__all__ = ["Limits"]
