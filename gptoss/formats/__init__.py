"""The ground floor: what every room needs to know about files, and nothing else."""
