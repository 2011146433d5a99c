"""Works of the digital library Aozora Bunko: its index, its site or a mirror of it, and its text format."""
