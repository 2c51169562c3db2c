"""Write a run so that TensorBoard shows plasticity at a glance, and start TensorBoard on it."""
