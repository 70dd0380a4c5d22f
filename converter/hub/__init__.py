"""Checkpoints on the Hugging Face Hub, downloaded to the cache or streamed.

``http`` is a patient request, ``ranges`` some bytes of one file, ``remote`` a file read ahead and
hashed, ``pinned`` a checkpoint at one commit, ``cache`` the way through huggingface_hub's cache.
"""
