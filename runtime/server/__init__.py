"""OpenAI's request formats as harmony conversations."""
