"""Convert OpenAI's requests (chat messages, tools) to harmony and back."""
