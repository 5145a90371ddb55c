"""Images from texts, on a finished CLIP: the generator, its training, and whether images agree with their captions."""
