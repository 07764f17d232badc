"""The pictures, captions and texts that the small model is trained on."""
