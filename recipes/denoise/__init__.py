"""DURR: noise or JPEG is taken out of images, by as many steps as a policy finds right; also out of your own."""
