"""Looking at data before training on them: `vlrep data check`, `inspect` and `bench`."""
