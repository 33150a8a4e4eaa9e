"""The model that is trained: its forward pass, losses, gradients, weights and adapters."""
