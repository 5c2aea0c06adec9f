"""The foundations of layers, graph and Estimator. Read op.py first: the contract of a layer."""

VERSION = "0.1.0"
