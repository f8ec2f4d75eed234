"""What compiled code gives beside what PyTorch's operations give."""

import torch

import re4.training.kernels


def both(monkeypatch, given, work):
    """Work it out by compiled code, and by PyTorch's operations."""
    re4.training.kernels._loaded.clear()
    compiled = work(**given)
    assert any(library is not None for library in re4.training.kernels._loaded.values())
    with monkeypatch.context() as without:
        without.setenv("RE4_NATIVE", "0")
        return compiled, work(**given)


def spread(tensor):
    """The same numbers, with room between them."""
    return torch.stack([tensor, torch.full_like(tensor, 7)], dim=-1)[..., 0]
