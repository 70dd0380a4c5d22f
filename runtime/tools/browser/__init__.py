"""The built-in tool ``browser``: pages of the web as numbered text with links."""
