"""Run a model: conversations in harmony format over llama.cpp.

harmony   conversation to token ids, token ids to events; no model, no I/O
models    a GGUF checked, and its memory planned, before it is loaded
engine    llama.cpp
sampling  samplers, constrained decoding, repetition
tools     functions the model may call
chat      turns, the tool loop, settings, events
terminal  what ``gptoss-run chat`` prints
server    OpenAI's request formats
cli       the command ``gptoss-run``
"""
