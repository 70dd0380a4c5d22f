"""Run a model: conversations in harmony format over llama.cpp.

harmony   conversation to token ids, token ids to events; no model, no I/O
models    a GGUF checked, and its memory planned, before it is loaded
engine    llama.cpp
sampling  samplers, constrained decoding, repetition
tools     functions the model may call, the built-in tools, MCP servers
chat      turns, the tool loop, settings, events
store     conversations and responses in one SQLite file
remote    a model on another server
terminal  ``gptoss-run chat``: what a person types and sees
server    OpenAI's and Anthropic's APIs, and the page
embed     the server as a child process of an application
launch    coding agents started on the local server
cli       the command ``gptoss-run``
"""
