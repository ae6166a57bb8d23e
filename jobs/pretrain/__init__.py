"""The embedded base: a small vision transformer pretrained on images that a program draws."""
