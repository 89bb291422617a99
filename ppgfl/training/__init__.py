"""Training: the loop, its step, its state and checkpoints, what it leaves on disk. Imports `evaluation` and all before
it."""
