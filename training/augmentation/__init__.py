"""New texts for the labels of a classifier."""
