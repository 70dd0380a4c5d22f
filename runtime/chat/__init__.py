"""A conversation: turns, the tool loop, settings, limits, events."""
