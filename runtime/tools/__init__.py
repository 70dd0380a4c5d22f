"""Tools the model may call: Python functions and the built-in tools."""
