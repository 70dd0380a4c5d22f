"""`/v1/chat/completions`: OpenAI's Chat Completions requests and responses as harmony."""
