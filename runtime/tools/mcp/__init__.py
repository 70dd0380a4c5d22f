"""MCP client: servers from a configuration file, their tools as groups of tools."""
