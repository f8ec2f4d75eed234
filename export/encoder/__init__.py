"""The encoder as an ONNX graph, run and compared with PyTorch."""
