"""The structure of a model: its layers, where their activations are found, and which layers consume them."""
