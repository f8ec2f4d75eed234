"""The gRPC transports behind one interface: `native` (HTTP/2 by nghttp2), and `grpcio`."""
