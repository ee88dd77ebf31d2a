"""System identification: which robot it is, from what it did."""
