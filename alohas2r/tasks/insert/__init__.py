"""The insertion of a peg into a socket, with two arms."""
