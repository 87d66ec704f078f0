"""The models of a run: parameters, layouts, optimizers, and the clips that others make of them."""
