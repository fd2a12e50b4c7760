"""Labels to what a network is trained to say."""
