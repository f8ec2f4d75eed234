"""The gRPC contract and its generated stubs. See README.md in this folder."""
