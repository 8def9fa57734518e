"""A web page that updates the image as the prompt is typed, with a student of ADD."""
