"""The engine's interface over another server."""
