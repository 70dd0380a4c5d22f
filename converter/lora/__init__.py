"""Merge a PEFT LoRA adapter into a checkpoint: targets, factors A and B, deltas.

``adapter`` opens an adapter: ``targets`` finds which tensors it changes and by which ``deltas``,
``base_check`` whether it was made for this base. ``merged`` is the checkpoint with it added, by the
``factors`` of each expert.
"""
