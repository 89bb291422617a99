"""The command lines. Imports everything; nothing imports it."""
from .commands import entry, main

__all__ = ["entry", "main"]
