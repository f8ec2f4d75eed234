"""The gRPC transports behind one interface: `grpcio`, and `native` (HTTP/2 in Rust)."""
