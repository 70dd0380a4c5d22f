"""The built-in tool ``python``: cells of code, run in WebAssembly in a process of its own."""
