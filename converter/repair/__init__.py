"""Repair a GGUF: missing metadata, wrong tokens, names and layouts of other tools.

``mending`` has the steps, ``keys`` and ``tensors`` decide what changes.
"""
