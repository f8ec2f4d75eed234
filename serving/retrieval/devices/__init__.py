"""The devices on which the encoder and the index run: CPU cores, or one GPU."""
