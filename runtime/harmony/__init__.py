"""The harmony format: conversation to token ids, token ids to events. No model, no I/O."""
