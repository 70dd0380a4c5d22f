"""``gptoss-run chat``: what a person or a script types, and what they see."""
