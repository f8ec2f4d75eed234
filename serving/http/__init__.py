"""JSON over HTTP: the methods of the gRPC contract for callers without gRPC."""
