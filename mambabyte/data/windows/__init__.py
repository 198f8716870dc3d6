"""Windows of context_length bytes, cut from documents by a named policy."""
