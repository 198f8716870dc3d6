"""The command line: words to a settings object. Imports no torch."""
