"""Write the output: tasks run by threads, a staging folder, resuming after an interrupt."""
