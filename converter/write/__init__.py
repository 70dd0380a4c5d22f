"""Write the output: threads run tasks, staging folder, journal to resume after an interrupt."""
