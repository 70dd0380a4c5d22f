"""Merge a LoRA adapter into a checkpoint; find transposed (square) experts of fine-tunes.

``adapter`` opens an adapter: ``targets`` finds which tensors it changes and by which ``deltas``,
``base_check`` whether it was made for this base. ``merged`` is the checkpoint with it added, by the
``factors`` of each expert. ``orientation`` shows whether the experts of a fine-tune are transposed.
"""
