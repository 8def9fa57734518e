"""A page that draws while you type, with a student of ADD."""
