"""From a network and a data set to a trained network: one step, its loss, its optimiser, augmentation, the loop."""
