"""Models for others: folders and a model card as on the Hugging Face hub, ONNX."""
