"""Further modalities on a finished CLIP. Each module is one: its data, its features and its encoder, in clip.TOWERS."""
