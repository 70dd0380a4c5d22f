"""The server as a child process of an application."""
