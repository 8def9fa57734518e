"""A page where one types and the picture follows."""
