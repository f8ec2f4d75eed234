"""Where the encoder and the index run: on CPU cores, or on one GPU."""
