"""The backward flows of Re4: losses that shape the interests in training and never reach serving.

One file each: `recontrast`, `reattend`, `reconstruct`. Source of all three: Zhang et al., Re4, WWW 2022.
"""
