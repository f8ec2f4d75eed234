"""`re4 bench peers`: other servers under the same loads on the same machine."""
