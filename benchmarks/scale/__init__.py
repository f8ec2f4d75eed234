"""A catalogue of any size built, tuned, published and read, with time and memory by stage."""
