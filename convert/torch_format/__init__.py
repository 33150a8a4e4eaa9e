"""The files that ``torch.save`` writes, read and written without PyTorch; nothing in them is run."""
