"""Clients of the server, started with the configuration that they need.

running_server   asks a running server for its model and context
programs         the command and environment that start a client
command          ``gptoss-run launch``

The configurations themselves are in ``server.client_configs``: ``serve`` prints them.
"""
