"""`re4 bench peers`: ours and other servers under the same loads, one after the other on one machine."""
