"""Merge PEFT LoRA adapters into a checkpoint's weights.

``lora`` reads an adapter, ``merged`` is a checkpoint with it added, ``turned`` finds out which way
the experts of a fine-tune saved in floats stand.
"""
