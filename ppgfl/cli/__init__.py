"""The command lines. Imports everything; nothing imports it."""
from .commands import entry, main  # noqa: F401
