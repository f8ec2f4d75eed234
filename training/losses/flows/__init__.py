"""The backward flows of Re4, losses of training alone: re-contrast, re-attend and re-construct.

Source: Zhang et al., Re4, WWW 2022.
"""
