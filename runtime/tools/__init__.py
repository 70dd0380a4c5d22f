"""Tools that the model may call: Python functions, their types as JSON schemas, their results."""
