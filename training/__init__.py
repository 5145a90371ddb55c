"""What a training script needs beside its recipe."""
