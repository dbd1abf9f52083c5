"""Figures of the undirected graph of all layers: small world, spectral gap."""
