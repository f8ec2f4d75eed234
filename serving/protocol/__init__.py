"""Names that the contract fixes: gRPC status codes and merge policies."""
