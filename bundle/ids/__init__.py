"""The map between rows and external item ids."""
