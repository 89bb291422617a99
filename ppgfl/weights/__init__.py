"""Weight files: where they are, reading them safely, loading them into a model. Imports `errors` and `system` only."""
