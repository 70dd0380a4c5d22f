"""Keeps conversations, responses and reasoning in one SQLite file."""
