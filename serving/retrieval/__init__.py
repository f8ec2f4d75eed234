"""The online path: encode histories, search the index, merge the K lists."""
