"""Export a GGUF to a Hugging Face checkpoint.

``exporting`` has the steps; ``source`` reads the GGUF, ``plan`` decides on each tensor, ``inverse``
has the transforms, ``shards`` and ``small_files`` are the files that come of it.
"""
