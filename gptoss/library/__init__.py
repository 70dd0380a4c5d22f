"""The user's models: found by name, fetched from the Hub, converted, verified, listed.

It uses the converter and the runtime, so it lies above both: no room imports it.
"""
