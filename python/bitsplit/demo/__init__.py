"""A small trained network with images, to see every method at work in a minute."""
