"""Items, their attributes, vectors of cold items, histories."""
