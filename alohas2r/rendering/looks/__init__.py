"""Looks of worlds that nobody here wrote: any table, any light, any object, a real camera."""
