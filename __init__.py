"""MINIST-CLIP: contrastive language-image pretraining on MNIST, small enough to read in an evening."""
