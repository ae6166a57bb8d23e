"""Non-linear fine-tuning: adapters that change a base's weights or tokens, and the method that trains any of them."""
