"""Files of a build: mapped vectors, finished stages, time left."""
