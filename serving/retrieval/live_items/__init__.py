"""Live items in memory: new and changed items, searched beside the index of a version.

Rows of live items follow the version's rows, from a multiple of eight on, so that bitmaps can be joined.
"""
