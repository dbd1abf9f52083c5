"""Hugging Face configs as topologies: who reads whom in each layer, and what a config cannot say.

>>> found = read({"model_type": "gpt_oss", "num_hidden_layers": 4, "sliding_window": 128})
>>> [str(layer) for layer in found.layers[:2]]
['causal() & window(127)', 'causal()']
"""

from patterncc.config.topology import ModelTopology, read

__all__ = ["ModelTopology", "read"]
