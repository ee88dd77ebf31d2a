"""RealSense wrist cameras."""
