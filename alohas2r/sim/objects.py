"""Sizes of the table and of the objects on it, as the scenes have them; half sizes are those of MuJoCo's geoms.

Source: the published report; tests hold them against the MJCF.
"""

TABLE_HEIGHT = 0.0008  # m, of the table's top in the world
SOCKET_HALF = 0.022  # m, half the socket's height and width
PEG_HALF = 0.010  # m, half the side of the nominal peg's section
HALF_LENGTH = 0.048  # m, half the length of socket, peg and block
HOLE_HALF = 0.018  # m, half the side of the socket's hole
