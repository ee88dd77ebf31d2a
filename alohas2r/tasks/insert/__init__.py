"""The insertion of a peg into a socket, with two arms."""

GYMNASIUM = "PegInsertion"  # alohas2r/PegInsertion-v1
