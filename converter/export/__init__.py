"""Export a GGUF to a Hugging Face checkpoint.

``export`` has the steps: ``gguf_source`` reads the GGUF, ``plan`` chooses each tensor's transform,
``safetensors_writer`` and ``config_files`` lay out the files.
"""
