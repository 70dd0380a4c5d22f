"""Chat with a loaded model: turns, their replies and events, the tool loop, settings and limits."""
