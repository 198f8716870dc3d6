"""What `mambabyte eval` can measure, by name: its flags, and the choices of `metrics`. Imports nothing."""

EVAL_METRICS = {
    "bpb": "measure bits per byte",
    "word_perplexity": "and the perplexity of words that follows from it",
    "compressors": "and what gzip, bzip2, xz, zstd and brotli need",
    "noise": "and what six kinds of noise in the text cost",
    "lengths": "and the figure by position and by context, up to 64 times the training length",
    "utf8": "and the share of generated samples that are valid UTF-8",
}
