"""Merge PEFT LoRA adapters into a checkpoint's weights.

``adapter`` opens an adapter: ``targets`` finds which tensors it changes and by which ``deltas``,
``base_check`` whether it was made for this base. ``merged`` is the checkpoint with it added, by the
``factors`` of each expert. ``orientation`` shows whether the experts of a fine-tune are transposed.
"""
