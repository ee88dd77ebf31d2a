"""alohas2r: from an empty machine to a bimanual ALOHA that inserts a peg, trained only in simulation."""

__version__ = "0.1.0"
