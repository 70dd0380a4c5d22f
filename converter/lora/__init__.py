"""What a fine-tune brings that the published checkpoints do not have.

``lora`` reads an adapter, ``merged`` is a checkpoint with it added, ``turned`` finds out which way
the experts of a fine-tune saved in floats stand.
"""
