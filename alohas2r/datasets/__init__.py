"""Demonstrations as data sets that others read: LeRobot, ALOHA's HDF5, NumPy."""
