"""The kit that proves the GPU path on a machine with one: `check.run` runs its parts and writes a report."""
