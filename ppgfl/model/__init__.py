"""The network: backbone -> neck -> head. `gfl.GFL` is the whole; nothing here reads a config."""
