"""Hugging Face Hub: list a repository, download it to the cache, or stream byte ranges.

``client`` makes requests and retries them, ``range_requests`` reads a range of a file,
``read_ahead`` fetches it in advance, ``remote_file`` hashes what it receives, ``repository`` is a
repository at one commit, ``cache`` uses huggingface_hub's cache.
"""
