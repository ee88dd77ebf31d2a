"""Physics engines behind one interface: reset, step, readout."""
