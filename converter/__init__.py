"""From a checkpoint to a GGUF, and back.

The way of a checkpoint, in the order to read it:

    cli, convert         what is asked, and the steps one after the other
    inputs, opening      where the checkpoint is, and what is made sure of first
    plan                 each tensor's name, type, shape, offset, transform; no weight is read
      dense, routes      which type is wanted, which transform a tensor takes
      transforms         those of the published checkpoints
      floats, experts    those of checkpoints saved in floats
    vocabulary, metadata, header, parts
                         the GGUF's keys, all that stands before its tensors, and its files
    jobs, running, writer, refusing, staging
                         the plan in pieces, done side by side; whole, or not at all
    manifest, preview    what was made of what; what would be made
    telling              how whoever called hears of it

Beside it: ``hub``, checkpoints read from afar; ``finetune``, what people add to a checkpoint;
``export`` and ``mend``, what can be made of a GGUF, asked for in ``gguf_cli``. Of these four
``mend`` imports ``export``, and no other imports another.
"""
