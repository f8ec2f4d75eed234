"""The losses of a training step: the recommendation loss, two regularisers, and Re4's flows."""
