"""The Plasticity tab of TensorBoard: a plugin that serves run data as JSON, and one page that draws it."""
