"""Scripts that a frozen program runs before its own."""
