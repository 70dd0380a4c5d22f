"""The server: OpenAI's and Anthropic's APIs over one loaded model, safe by default."""
