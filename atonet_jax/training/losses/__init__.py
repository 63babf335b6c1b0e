"""The training loss: a weighted sum of the terms that a network declares (`models.terms`)."""

from atonet_jax.training.losses.terms import check_terms, configured_terms, label_weights, total_loss

__all__ = ['check_terms', 'configured_terms', 'label_weights', 'total_loss']
