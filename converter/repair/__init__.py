"""Repair a GGUF: missing metadata, wrong tokens, names and layouts of other tools.

``metadata`` and ``tensors`` plan the changes, ``repair`` writes the file.
"""
