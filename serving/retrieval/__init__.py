"""The retrieval of candidates: encode histories, search the index, merge the K lists."""
