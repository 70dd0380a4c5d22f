"""Readers of checkpoints, safetensors and GGUF; tables of tensors, settings, llama.cpp's keys.

Readers: ``safetensors``, ``checkpoint`` (a folder), ``gguf``, ``tokenizer_json``, over the bytes of
``byte_source``; ``bounded_json`` parses JSON. Layouts: ``tensor_map`` (names and shapes),
``openai_layout``, ``other_tools``, ``fused_qkv``. Facts: ``hparams``, ``published``,
``harmony_tokens``, ``o200k``, and what llama.cpp can compute: ``llama_cpp_keys``,
``llama_cpp_types``.
"""
