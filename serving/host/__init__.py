"""The machine: cores and memory of the control group, addresses, thread pools."""
