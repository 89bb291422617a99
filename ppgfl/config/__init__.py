"""Configs: YAML -> one plain dict, and what its keys mean. Imports `errors` and `system` only."""
from .load import load_config

__all__ = ["load_config"]  # `ppgfl.config.load_config` is its public path
