"""What layers, the graph and the Estimator share. Start with op.py: what a layer must do."""

VERSION = "0.1.0"
