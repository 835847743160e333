"""Every knob of the simulator, block by block; `simulation` puts the blocks together, `bounds` says what may be."""
