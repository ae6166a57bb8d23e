"""GIFT: fine-tuning residuals that a small generator makes out of the pretrained weights themselves."""
