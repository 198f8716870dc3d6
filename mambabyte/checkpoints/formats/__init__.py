"""Models of other programs: each format is a file that reads its config, or writes a folder, or both.

Nothing of a stranger's is run: configs are JSON, weights are safetensors or PyTorch's files without code.
"""
