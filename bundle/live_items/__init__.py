"""Live items: changes of the catalogue beside the versions, durable and followed by every server."""
