"""The public path of the targets; they are made in `data.targets`."""
from .data.targets import Gt2GFLTarget, assign, valuable_region

__all__ = ["Gt2GFLTarget", "assign", "valuable_region"]
