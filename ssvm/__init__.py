"""The secondary storage role: not built yet; the room is kept so that names do not move."""
