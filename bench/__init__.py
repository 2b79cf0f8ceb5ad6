"""veilbench: how much of a face survives in what a face-recognition system stores."""

__version__ = "0.1.0"
