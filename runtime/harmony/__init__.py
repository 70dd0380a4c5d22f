"""The harmony format: messages to token ids, token ids to events, JSON schemas. No
model, no I/O.
"""
