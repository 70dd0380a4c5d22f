"""What ``gptoss-run chat`` prints: for a person, or as JSON lines."""
