"""Checkpoints on the Hugging Face Hub, downloaded to the cache or streamed.

``client`` makes requests and retries them, ``range_requests`` reads a range of a file,
``read_ahead`` fetches it in advance, ``remote_file`` hashes what it receives, ``repository`` is a
repository at one commit, ``cache`` uses huggingface_hub's cache.
"""
