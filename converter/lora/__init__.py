"""Merge PEFT LoRA adapters into a checkpoint's weights.

``adapter`` reads one, ``merged`` computes the sums as they are read, ``orientation`` finds out
whether experts saved in floats are transposed.
"""
