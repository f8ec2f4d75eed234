"""The gRPC calls: from request bytes to reply bytes."""
