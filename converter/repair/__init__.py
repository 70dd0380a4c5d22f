"""Repair a GGUF: missing metadata, wrong tokens, names and layouts of other tools.

``repair`` has the steps; ``metadata`` and ``tensors`` decide what changes.
"""
