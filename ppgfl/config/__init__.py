"""Configs: YAML -> one plain dict, and what its keys mean. Imports `errors` and `system` only."""
from .load import load_config  # noqa: F401  `ppgfl.config.load_config` is its public path
