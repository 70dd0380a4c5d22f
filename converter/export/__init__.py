"""Export a GGUF to a Hugging Face checkpoint.

``export`` has the steps; ``gguf_source`` reads the GGUF, ``plan`` decides on each tensor,
``safetensors_writer`` and ``config_files`` make the files.
"""
