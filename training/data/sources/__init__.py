"""Public data sets, downloaded and converted."""
