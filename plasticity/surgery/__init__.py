"""Edits of weights and of optimizer states: recycling of neurons, masks, initial distributions, fresh draws."""
