"""``gptoss-quant``: verify, audit, compare and report on the weights of a model.

mxfp4     tables, byte layouts, decoding and encoding of MXFP4
model     a checkpoint or a GGUF loaded as one ``Model``
verify    a GGUF equals its source
audit     what is wrong with a model, from the model alone
diff      two models compared
report    an audit and a diff as one HTML page
info      what a model is, from its headers
parallel  threads: how many, and their results as they finish
location  where a value is within a tensor
cli       the command ``gptoss-quant``
"""
