"""Measurements of speed and quality, through the public interface alone. The runtime never imports this."""
