"""Pages for people. Each shows what the API answers to its reader's key, and does nothing else."""
