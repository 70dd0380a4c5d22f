"""The harmony format: messages to token ids, token ids to events, JSON schemas. No I/O."""
