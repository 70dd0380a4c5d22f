"""From a GGUF that lacks something, or is another tool's, to one that llama.cpp runs.

``mending`` has the steps, ``keys`` and ``tensors`` decide what changes.
"""
